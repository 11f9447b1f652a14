"""The outlines of the 42 products.

Each product is a function `draw(pen, vary)` that draws it with a `Pen` in the square from -1 to 1. `vary(low, high)`
returns a number between the two, such as the length of the sleeves. The caller chooses the part of the range, so that
training and test images show different variants of a product.

Synopsis:
  PRODUCTS["mug"](pen, lambda low, high: random.uniform(low, high))
"""

from collections.abc import Callable

from convoy.input_pipeline.sample.household import HOUSEHOLD
from convoy.input_pipeline.sample.pen import Pen
from convoy.input_pipeline.sample.wardrobe import WARDROBE

# The first categories are the easiest to distinguish, for small sets.
CATEGORIES = (
    "t-shirt",
    "dress",
    "trousers",
    "sneaker",
    "handbag",
    "watch",
    "bottle",
    "mug",
    "table lamp",
    "headphones",
    "chair",
    "glasses",
    "umbrella",
    "toy car",
    "teapot",
    "camera",
    "backpack",
    "key",
    "clock",
    "frying pan",
    "book",
    "phone",
    "laptop",
    "cap",
    "ring",
    "ball",
    "high heel",
    "sofa",
    "scissors",
    "guitar",
    "bicycle",
    "sock",
    "lipstick",
    "hammer",
    "potted plant",
    "television",
    "game controller",
    "suitcase",
    "teddy bear",
    "light bulb",
    "tie",
    "fork",
)
PRODUCTS: dict[str, Callable[[Pen, Callable[[float, float], float]], None]] = {
    name: (WARDROBE | HOUSEHOLD)[name] for name in CATEGORIES
}
