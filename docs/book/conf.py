"""Settings of the book for Sphinx. `make book` (tools/book.py) gathers the pages and calls it."""

import hashlib
import re
import sys
from html import escape
from pathlib import Path

from docutils import nodes
from myst_nb.core.render import NbElementRenderer
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
import docstrings  # noqa: E402
import formulas  # noqa: E402

logger = logging.getLogger(__name__)
project = "Anomaly detection with pretrained features"
html_title = project
language = "en"
# When one of these changes, no page that was built before is kept.
made_by = hashlib.sha256(
    b"".join(Path(file).read_bytes() for file in (__file__, docstrings.__file__, formulas.__file__))
).hexdigest()
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["downloads"]
smartquotes = False
highlight_language = "none"  # what is indented in a docstring is mathematics rather than code

# Lessons are shown as they were committed: nothing is executed here.
nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show the solution"  # the only cells that are folded
nb_code_prompt_hide = "Hide the solution"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}
python_maximum_signature_line_length = 90
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_math_renderer = "mathml"
html_css_files = ["formulas.css", "book.css"]
html_js_files = ["book.js"]
html_copy_source = False
html_domain_indices = False  # "The library" lists the modules, with what each is for
html_show_copyright = False
html_show_sphinx = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
BRAND = {
    "color-brand-primary": "#0b5c8a",
    "color-brand-content": "#0b5c8a",
    "color-brand-visited": "#6b4a80",
}
BRAND_DARK = {
    "color-brand-primary": "#6cbbee",
    "color-brand-content": "#6cbbee",
    "color-brand-visited": "#c3a0dc",
}
html_theme_options = {
    "light_logo": "logo.svg",
    "dark_logo": "logo.svg",
    "top_of_page_buttons": [],
    "light_css_variables": BRAND,
    "dark_css_variables": BRAND_DARK,
}
# A prompt, as in `>>> x`, is not part of what is copied.
copybutton_exclude = ".linenos, .gp, .go"
UNANSWERED = "No prediction was made. "


def with_alternative_text(render_image):
    """myst-nb passes on width and height of an output's metadata, and drops the sentence that says what a figure shows."""

    def render(self, data):
        (image,) = render_image(self, data)
        image["alt"] = data.output_metadata.get(data.mime_type, {}).get("alt", "")
        return [image]

    return render


NbElementRenderer.render_image = with_alternative_text(NbElementRenderer.render_image)


class Figures(SphinxPostTransform):
    """An output image and the paragraph "Figure: ..." below it become one figure with its caption."""

    default_priority = 200

    def run(self):
        number = 0
        for paragraph in list(self.document.findall(nodes.paragraph)):
            if (
                len(paragraph) != 1
                or not isinstance(paragraph[0], nodes.emphasis)
                or not paragraph.astext().startswith("Figure: ")
            ):
                continue
            siblings = paragraph.parent.children
            position = siblings.index(paragraph)
            image = siblings[position - 1] if position else None
            if not isinstance(image, nodes.image):
                continue
            caption = nodes.caption("", paragraph.astext().removeprefix("Figure: "))
            number += 1
            figure = nodes.figure("", image.deepcopy(), caption, ids=[f"figure-{number}"])
            paragraph.parent.replace(paragraph, figure)
            figure.parent.remove(image)


class Predictions(SphinxPostTransform):
    """A question to the reader, and its answer, stand out. Nobody predicts in a book, so it does not say that nobody did."""

    default_priority = 201

    def run(self):
        for paragraph in self.document.findall(nodes.paragraph):
            output, text = paragraph.parent, paragraph.astext()
            if "cell_output" not in output.get("classes", []):
                continue
            if text.startswith("Your prediction: "):
                output["classes"].append("prediction")
            elif text.startswith(UNANSWERED):
                first = next(paragraph.findall(nodes.Text))
                first.parent.replace(first, nodes.Text(first.removeprefix(UNANSWERED)))
                paragraph["classes"].append("answer")


def formula(node, display):
    try:
        return formulas.mathml(node.astext(), display)
    except ValueError as error:
        logger.warning("%s", error, location=node)
        return escape(node.astext())


def inline_formula(translator, node):
    translator.body.append(formula(node, display=False))
    raise nodes.SkipNode


def displayed_formula(translator, node):
    translator.body.append(f'<div class="formula">{formula(node, display=True)}</div>')
    raise nodes.SkipNode


def read_docstring(app, what, name, obj, options, lines):
    lines[:] = docstrings.to_rst(lines)


def plain_signature(app, what, name, obj, options, signature, returned):
    """`ArrayLike | None` comes out as the alias's own representation."""
    return tuple(
        text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text)
        for text in (signature, returned)
    )


def leave_out(app, what, name, obj, skip, options):
    """Fields of a NamedTuple bring a docstring of Python's own."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def static_files(app, config):
    """They are gathered beside the pages, not beside this file."""
    config.html_static_path = [str(app.srcdir / "static")]
    config.html_favicon = str(app.srcdir / "static" / "favicon.svg")


def setup(app):
    app.add_config_value("made_by", "", "env")
    app.connect("config-inited", static_files)
    app.add_html_math_renderer("mathml", (inline_formula, None), (displayed_formula, None))
    app.add_post_transform(Figures)
    app.add_post_transform(Predictions)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("autodoc-skip-member", leave_out)
