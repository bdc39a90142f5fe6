"""Colours as people see them, with and without colour-blindness."""

from __future__ import annotations

from typing import Any

import numpy as np

THEMES = ("light", "dark")

# Severe colour-blindness in linear sRGB: Machado, Oliveira and Fernandes 2009, table 1.
VISIONS = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "none": np.tile([0.2126, 0.7152, 0.0722], (3, 1)),  # grey
}


def linear(rgb: list[int]) -> np.ndarray:
    value = np.array(rgb) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def luminance(rgb: np.ndarray) -> float:
    return float(rgb @ [0.2126, 0.7152, 0.0722])


def contrast(a: np.ndarray, b: np.ndarray) -> float:
    """WCAG 2."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Of linear sRGB: Ottosson 2020."""
    cones = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    cones.append([0.0883024619, 0.2817188376, 0.6299787005])
    mix = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    mix.append([0.0259040371, 0.7827717662, -0.8086757660])
    return np.array(mix) @ np.cbrt(np.clip(np.array(cones) @ rgb, 0, None))


def rgb(page: Any, colour: str) -> list[int]:
    """A colour in any of the forms of CSS as three bytes."""
    return page.evaluate(
        """(colour) => {
            const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
            context.fillStyle = colour;
            context.fillRect(0, 0, 1, 1);
            return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
        }""",
        colour,
    )
