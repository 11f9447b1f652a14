"""Candidates for the shipped recipes, and the runs that compare them: results.jsonl, one run per line.

All with image seed 1, on 2 CPU cores with bfloat16 but without AMX, on which other work ran at times: compare
`cpu_seconds` and not `wall_seconds`. Fields of a line:

    dataset, image_seed, seed                      what was trained on
    overrides                                      differences from `convnet_64.py`, without intervals of evaluations
    steps                                          as planned
    test_top1, test_ece                            test images, checkpoint with the best validation score, in [0, 1]
    test_top1_last, last_ece                       the same with the last checkpoint
    test_top1_last_other_flip                      the last checkpoint with the opposite of config.flip_tta
    validation_top1                                last evaluation
    best_step, best_validation                     best evaluation
    train_top1_last_logged                         on the last logged batches of training, augmented and perhaps mixed
    step_ms                                        median step, wall time
    cpu_seconds, wall_seconds                      of training, with start-up, evaluations and checkpoints
    evaluation_cpu_seconds                         of the evaluation on the test images
"""
