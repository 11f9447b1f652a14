"""The outlines of the 42 products.

Each product is a function `draw(pen, vary)` that draws it with a `Pen` in the square from -1 to 1. `vary(low, high)`
returns a number between the two, such as the length of the sleeves. The caller chooses the part of the range, so that
training and test images show different variants of a product.

Synopsis:
  PRODUCTS["mug"](pen, lambda low, high: random.uniform(low, high))
"""

from collections.abc import Callable

from convoy.input_pipeline.sample import household, wardrobe
from convoy.input_pipeline.sample.pen import Pen, Vary

Outline = Callable[[Pen, Vary], None]

# The first are the easiest to distinguish, for small sets.
PRODUCTS: dict[str, Outline] = {
    "t-shirt": wardrobe.t_shirt,
    "dress": wardrobe.dress,
    "trousers": wardrobe.trousers,
    "sneaker": wardrobe.sneaker,
    "handbag": wardrobe.handbag,
    "watch": wardrobe.watch,
    "bottle": household.bottle,
    "mug": household.mug,
    "table lamp": household.table_lamp,
    "headphones": wardrobe.headphones,
    "chair": household.chair,
    "glasses": wardrobe.glasses,
    "umbrella": wardrobe.umbrella,
    "toy car": household.toy_car,
    "teapot": household.teapot,
    "camera": household.camera,
    "backpack": wardrobe.backpack,
    "key": wardrobe.key,
    "clock": household.clock,
    "frying pan": household.frying_pan,
    "book": household.book,
    "phone": household.phone,
    "laptop": household.laptop,
    "cap": wardrobe.cap,
    "ring": wardrobe.ring,
    "ball": household.ball,
    "high heel": wardrobe.high_heel,
    "sofa": household.sofa,
    "scissors": household.scissors,
    "guitar": household.guitar,
    "bicycle": household.bicycle,
    "sock": wardrobe.sock,
    "lipstick": wardrobe.lipstick,
    "hammer": household.hammer,
    "potted plant": household.potted_plant,
    "television": household.television,
    "game controller": household.game_controller,
    "suitcase": wardrobe.suitcase,
    "teddy bear": household.teddy_bear,
    "light bulb": household.light_bulb,
    "tie": wardrobe.tie,
    "fork": household.fork,
}
