"""Forty-two products as outlines: what tells a mug from a teapot, and nothing else.

Each product is a function `draw(pen, vary)` that draws it with a `Pen` in the square from -1 to 1. `vary(low, high)`
answers with a number between the two: how long the sleeves are, whether the watch is round. Who calls decides which
part of that range is used, so that training and test images can show different makes of the same product.

Synopsis:
  PRODUCTS["mug"](pen, lambda low, high: random.uniform(low, high))
"""

from collections.abc import Callable

from convoy.input_pipeline.sample.household import HOUSEHOLD
from convoy.input_pipeline.sample.pen import Pen
from convoy.input_pipeline.sample.wardrobe import WARDROBE

# The order of the categories: the first few are told apart most easily, for small sets.
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
