"""Drawing for notebooks and reports: colours, numbers, notes and images."""

# Okabe-Ito palette: told apart by people with any colour vision
COLOURS = {"FP32": "#999999", "BF16": "#56B4E9", "INT8": "#D55E00"}
COLOURS |= {"OpenVINO INT8": "#0072B2", "ONNX Runtime INT8": "#CC79A7"}
OTHER = "#009E73"  # whatever else there is


def number(value):
    """Three significant digits without an exponent: 0.182, 8.81, 117."""
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def note(axis, text, place, up=5, **style):
    """Write `text` centred `up` points above a place (x, y) of the data."""
    style = {"ha": "center", **style}
    axis.annotate(text, place, xytext=(0, up), textcoords="offset points", **style)


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
    axis.plot(xs, ys, "o", ms=8, color=COLOURS["INT8"], clip_on=False, zorder=3)
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
            arrowprops={"arrowstyle": "-", "color": "#999999", "lw": 0.8, "shrinkB": 5},
        )
    axis.spines[["top", "right"]].set_visible(False)
