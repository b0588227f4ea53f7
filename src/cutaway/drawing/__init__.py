"""Drawings of plain data as SVG: circuits, curves, heat maps. Loads nothing; knows no network and no torch."""
