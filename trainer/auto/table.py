"""The numbers of the rules of `--config=auto`, and where they are from."""

# Length: `convnet` does 80 epochs, 2,835 steps on 2,268 images. On 227 images, a tenth of the sample set, 710 steps in
# batches of 32 gave 57.6 % top-1 on test images, and 391 in batches of 64 56.1 %, in the same time
# (benchmarks/candidates/results.jsonl, two seeds each).
EPOCHS, MIN_STEPS, MOST_EPOCHS = 80, 850, 400
LONGEST = 2  # times this length, if the time budget allows
# Mixup and CutMix: photographs in 20 epochs were 60.5 % with them and 69.0 % without, in 49 epochs, 1,723 steps, 71.5 %
# with them and 69.4 % without, in 100 76.9 % with them. 227 images in 50 epochs, 178 steps, were 50.6 and 51.4 %.
MIXED_EPOCHS, MIXED_STEPS = 40, 1000
# Images: the sizes of the shipped recipes and those between them. On a CPU, 32 pixels gave more than 64 on most
# datasets in the same time.
SIZES = (16, 24, 32, 48, 64, 96, 128)
MOST_SIDE = {"CPU": 32, "GPU": 128}
FEW_IMAGES, SIDE_OF_FEW, BATCH_OF_FEW = 500, 32, 32
SMALLEST_SIDE = 32  # down to which a time budget may reduce the images
BATCH, MANY_IMAGES, BATCH_OF_MANY = 64, 20_000, 128  # the last on GPUs
PER_VIRTUAL_REPLICA = 8  # images at least, which batch normalization sees
BYTES_PER_PIXEL = 3_000  # of an image in training, estimated from the layers of `convnet`
SHARE_OF_MEMORY = 0.5
# Progressive resizing, as in `convnet_fast`: shares of the size, and of the run at their ends. Only in less time than
# for half of the usual epochs: in about the same time, the sample set was 93.5 % in 40 epochs at 32 pixels, and 92.0 %
# in 70 progressive ones; photographs were 70.8 % in 48 and 71.5 % in 49.
PROGRESSIVE = ((0.5, 0.3), (0.75, 0.6))
ENOUGH = 0.5  # of the usual epochs
# AdamW averages over about 1 / (learning rate * decay) steps (Wang and Aitchison 2024): a quarter of the run. With 135
# steps in all, 5 per run gave 35 % on the 227 images, and 0.5 42 %.
DECAY_PER_RUN, STEPS_OF_DECAY = 4.0, 75
EVALUATIONS, CHECKPOINTS = 6, 30
SHORT = 10  # epochs, of which one is for warmup
# What changes a class (`sensitivity`): in standard errors, and as shares of what is above chance. Of that, mirrored
# digits keep 0.3, stamps 0.7, photographs and the sample set 1. Colors alone give 0.16 (photos), 0.03 (sample) and 0.23
# (stamps) of what is possible, and no more than shapes.
CERTAIN, KEPT_BY_MIRRORING = 3.0, 0.5
WEAK_HUE, NO_HUE = 0.25, 0.5
UNBALANCED, VERY_UNBALANCED = 3.0, 10.0  # images of the largest class per image of the smallest
ODD_SHAPES, LONG_SHAPES = 0.1, 0.25  # shares of the images
# Time.
SHARE_OF_BUDGET = 0.9
STARTUP_SECONDS, STARTUP_SHARE = 30.0, 0.5  # to begin, to measure and to end, and its largest share of the budget
STAGE_SECONDS = 3.0  # to compile the step for another image size
EVALUATION_COST = 0.35  # of an image, in images trained on
OVERHEAD = 1.05  # of steps: checkpoints, logs
