"""Drawing for notebooks and reports: colours, numbers, notes and images."""

from pathlib import Path

STYLE = Path(__file__).with_name("house.mplstyle")  # for plt.style.use
# Okabe-Ito palette: told apart by people with any colour vision
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
AMBER = "#E69F00"
DARK, GREY, LIGHT = "#555555", "#999999", "#DDDDDD"
COLOURS = {"FP32": GREY, "BF16": SKY, "INT8": ORANGE}
COLOURS |= {"OpenVINO INT8": BLUE, "ONNX Runtime INT8": PURPLE, "LiteRT INT8": AMBER}
OTHER = GREEN  # whatever else there is


def number(value):
    """Three significant digits without an exponent: 0.182, 8.81, 117."""
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def note(axis, text, place, up=5, **style):
    """Write `text` centred `up` points above a place (x, y) of the data."""
    style = {"ha": "center", **style}
    axis.annotate(text, place, xytext=(0, up), textcoords="offset points", **style)


def bars(axis, values, colours):
    """Horizontal bars of {label: value}, the first at the top, each with its number."""
    drawn = axis.barh([*values], [*values.values()], color=colours)
    axis.bar_label(drawn, [number(value) for value in values.values()], padding=4)
    axis.invert_yaxis()
    axis.margins(x=0.18)


def image(figure, alt):
    """A matplotlib figure for a notebook as a PNG with alt text."""
    import io

    from IPython.display import Image
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    pyplot.close(figure)  # or the notebook would show it a second time
    return Image(buffer.getvalue(), alt=alt)


def label_points(axis, points, labels, gap=0.11):
    """Scatter `points` (x, y) with a label for each beside the axes, at least `gap` apart.

    Points may coincide: a line leads from each to its label. `gap` is a share of the height.
    """
    xs, ys = zip(*points)
    axis.plot(xs, ys, "o", ms=8, color=ORANGE, clip_on=False, zorder=3)
    axis.margins(x=0.1, y=0.1)
    low, high = axis.get_ylim()
    at = [(y - low) / (high - low) for y in ys]
    level = [round(value / gap) for value in at]  # points of one level get labels that do not cross
    order = sorted(range(len(points)), key=lambda i: (level[i], xs[i] if at[i] > 0.5 else -xs[i]))
    heights = [at[index] for index in order]
    for step in range(1, len(heights)):
        heights[step] = max(heights[step], heights[step - 1] + gap)
    limit = max(at)
    for step in reversed(range(len(heights))):
        heights[step] = min(heights[step], limit)
        limit = heights[step] - gap
    for index, height in zip(order, heights):
        axis.annotate(
            labels[index],
            points[index],
            xytext=(1.06, height),
            textcoords="axes fraction",
            va="center",
            fontsize=11,
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.8, "shrinkB": 5},
        )
