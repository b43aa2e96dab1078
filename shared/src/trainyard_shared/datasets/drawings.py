"""Draw small pictures of ten simple figures, as data to train on where no real data are at hand.

Figures vary in place, size, angle, colours and background, and are partly covered, so that no single pixel says much:
a linear classifier stays far behind a small convolutional network.
"""

from collections.abc import Callable

import numpy as np

SIDE = 32
FIGURES = ("circle", "square", "triangle", "cross", "ring", "stripes", "star", "checkerboard", "crescent", "dots")
HUES = ("red", "yellow", "green", "blue", "purple")
HUE_ANGLES = np.array([0.0, 0.15, 0.35, 0.6, 0.83], np.float32)  # in turns
# The rest of the pictures show something else than their label says: no classifier can reach 100 %.
LABEL_PURITY = 0.96

_CHUNK = 500  # images at a time, so that the work stays in the processor's cache

Array = np.ndarray


def draw(figures: Array, rng: np.random.Generator, hues: Array | None = None, light: Array | None = None) -> Array:
    """Return one picture for each entry of `figures`, uint8 of shape (N, 3, 32, 32).

    Args:
        figures: Indices into FIGURES, shape (N,).
        rng: The only source of chance.
        hues: Indices into HUES, shape (N,); by default any colour at all.
        light: Whether the background is lighter than the figure, shape (N,); by default by chance.
    """
    # N: images, H and W: rows and columns
    images = np.empty((len(figures), 3, SIDE, SIDE), np.uint8)
    # Drawing equal figures together lets each be one array expression.
    order = np.argsort(figures, kind="stable")
    for figure in range(len(FIGURES)):
        of_this = order[figures[order] == figure]
        for start in range(0, len(of_this), _CHUNK):
            chosen = of_this[start : start + _CHUNK]
            n = len(chosen)
            if hues is None:
                hue = rng.random(n, np.float32)
            else:
                hue = (HUE_ANGLES[hues[chosen]] + _uniform(rng, n, -0.03, 0.03)) % 1
            is_light = rng.random(n) < 0.5 if light is None else light[chosen]
            images[chosen] = _draw_alike(figure, hue, is_light, rng)
    return images


def _draw_alike(figure: int, hue: Array, is_light: Array, rng: np.random.Generator) -> Array:
    n = len(hue)
    u, v, unit = _coordinates(n, rng)
    # Signed distance to the outline in units of the figure; one pixel wide edges are blended.
    distance = OUTLINES[figure](u, v)
    cover = np.clip(0.5 - distance / unit, 0, 1)  # (N, H, W)
    bright, dark = _uniform(rng, n, 0.62, 1.0), _uniform(rng, n, 0.08, 0.45)
    ink = _colour(hue, _uniform(rng, n, 0.45, 1.0), np.where(is_light, dark, bright))
    ground = _colour(rng.random(n, np.float32), _uniform(rng, n, 0.0, 0.6), np.where(is_light, bright, dark))
    paper = _background(ground, rng)
    picture = paper + cover[:, None] * (ink[:, :, None, None] - paper)  # (N, 3, H, W)
    picture = _cover_part(picture, rng)
    noise = rng.integers(-14, 15, picture.shape, dtype=np.int8)
    return np.clip(picture * 255 + noise, 0, 255).astype(np.uint8)


def _coordinates(n: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return the coordinates (N, H, W) in which the figure is upright with radius 1, and the size of a pixel."""
    pixel = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    radius = _uniform(rng, n, 7.0, 12.5)[:, None, None]
    # The smaller, the further from the middle.
    reach = 15.0 - radius
    x = pixel[None, None, :] - reach * _uniform(rng, n, -1, 1)[:, None, None]
    y = pixel[None, :, None] - reach * _uniform(rng, n, -1, 1)[:, None, None]
    angle = _uniform(rng, n, -np.pi, np.pi)[:, None, None]
    stretch = _uniform(rng, n, 0.85, 1.18)[:, None, None]
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
    return (x * cos + y * sin) * stretch, (y * cos - x * sin) / stretch, 1 / radius


def _background(colour: Array, rng: np.random.Generator) -> Array:
    """Return papers (N, 3, H, W) of uneven colour with some clutter, like a photograph out of focus."""
    n = len(colour)
    coarse = rng.random((n, 3, 5, 5), np.float32) * 0.5 - 0.25
    weights = _interpolation(5)  # (H, 5)
    paper = colour[:, :, None, None] + np.matmul(np.matmul(weights, coarse), weights.T)
    # Two bars across each paper, as something that is no figure.
    pixel = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    for _ in range(2):
        angle = _uniform(rng, n, 0, np.pi)[:, None, None]
        along = pixel[None, None, :] * np.cos(angle) + pixel[None, :, None] * np.sin(angle)
        offset, width = _uniform(rng, n, -18, 18)[:, None, None], _uniform(rng, n, 0.5, 2.0)[:, None, None]
        bar = np.clip(width + 0.5 - np.abs(along - offset), 0, 1)
        paper += bar[:, None] * _uniform(rng, 3 * n, -0.3, 0.3).reshape(n, 3, 1, 1)
    return paper


def _cover_part(picture: Array, rng: np.random.Generator) -> Array:
    """Put a plain box over a part of each picture."""
    n = len(picture)
    pixel = np.arange(SIDE, dtype=np.float32)
    inside = np.ones((n, SIDE, SIDE), bool)
    for axis in (1, 2):
        start, length = _uniform(rng, n, -4, 32), _uniform(rng, n, 3, 10)
        along = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])
        inside &= np.expand_dims(along, 3 - axis)
    colour = rng.random((n, 3, 1, 1), np.float32)
    return np.where(inside[:, None], colour, picture)


def _interpolation(num_knots: int) -> Array:
    position = np.linspace(0, num_knots - 1, SIDE, dtype=np.float32)[:, None]
    return np.clip(1 - np.abs(position - np.arange(num_knots, dtype=np.float32)), 0, 1)


def _colour(hue: Array, saturation: Array, value: Array) -> Array:
    """Return the colours as red, green and blue, shape (N, 3)."""
    turns = (hue[:, None] * 6 + np.array([0, 4, 2], np.float32)) % 6
    pure = np.clip(np.abs(turns - 3) - 1, 0, 1)
    return (value[:, None] * (1 - saturation[:, None] * (1 - pure))).astype(np.float32)


def _uniform(rng: np.random.Generator, n: int, low: float, high: float) -> Array:
    return rng.random(n, np.float32) * np.float32(high - low) + np.float32(low)


def _disc(u: Array, v: Array, radius: float = 1.0) -> Array:
    return np.sqrt(u * u + v * v) - radius


def _box(u: Array, v: Array, half_width: float, half_height: float) -> Array:
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


def _triangle(u: Array, v: Array) -> Array:
    return np.maximum(np.abs(u) * 0.866 + v * 0.5, -v) - 0.55


def _cross(u: Array, v: Array) -> Array:
    return np.minimum(_box(u, v, 1.0, 0.3), _box(u, v, 0.3, 1.0))


def _ring(u: Array, v: Array) -> Array:
    return np.abs(_disc(u, v, 0.75)) - 0.22


def _stripes(u: Array, v: Array) -> Array:
    # Triangle waves have slope one everywhere, so that all edges are equally soft.
    return np.maximum(_box(u, v, 0.9, 0.9), 0.15 - np.abs((u + 0.9) % 0.6 - 0.3))


def _star(u: Array, v: Array) -> Array:
    fifth = 2 * np.pi / 5
    angle = np.abs((np.arctan2(u, -v) + fifth / 2) % fifth - fifth / 2)
    radius = np.sqrt(u * u + v * v)
    # In one half of a point the outline is a straight line from the tip at (1, 0) to the notch.
    notch_u, notch_v = 0.42 * np.cos(fifth / 2), 0.42 * np.sin(fifth / 2)
    normal_u, normal_v = notch_v, 1 - notch_u
    length = np.hypot(normal_u, normal_v)
    return (radius * (np.cos(angle) * normal_u + np.sin(angle) * normal_v) - normal_u) / length


def _checkerboard(u: Array, v: Array) -> Array:
    wave_u = np.abs((u + 0.9) % 0.9 - 0.45) - 0.225
    wave_v = np.abs((v + 0.9) % 0.9 - 0.45) - 0.225
    same = np.where(wave_u * wave_v > 0, -1, 1) * np.minimum(np.abs(wave_u), np.abs(wave_v))
    return np.maximum(_box(u, v, 0.9, 0.9), same)


def _crescent(u: Array, v: Array) -> Array:
    return np.maximum(_disc(u, v), -_disc(u - 0.5, v, 0.85))


def _dots(u: Array, v: Array) -> Array:
    near_u, near_v = (u + 0.9) % 0.6 - 0.3, (v + 0.9) % 0.6 - 0.3
    return np.maximum(_box(u, v, 0.9, 0.9), _disc(near_u, near_v, 0.2))


OUTLINES: tuple[Callable[[Array, Array], Array], ...] = (
    _disc,
    lambda u, v: _box(u, v, 0.8, 0.8),
    _triangle,
    _cross,
    _ring,
    _stripes,
    _star,
    _checkerboard,
    _crescent,
    _dots,
)  # in the order of FIGURES
