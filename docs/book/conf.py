"""Settings of the book for Sphinx. `make book` (tools/book.py) gathers the pages and calls it."""

import re
import sys
from pathlib import Path

from docutils import nodes
from myst_nb.core.render import NbElementRenderer
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
from formulas import mathml

project = html_title = "Anomaly detection with pretrained features"
language = "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "numpydoc", "sphinx_copybutton"]
exclude_patterns = ["downloads", "docs/book"]
smartquotes = False
default_role = "py:obj"  # `KNN` in a docstring is a link where there is something of that name

# Lessons are shown as they were committed: nothing is executed here.
nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show the solution"  # the only cells that are folded
nb_code_prompt_hide = "Hide the solution"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections have the types, in words
python_maximum_signature_line_length = 90
add_module_names = False
numpydoc_show_class_members = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["."]
html_css_files = ["book.css"]
html_js_files = ["book.js"]
html_favicon = "favicon.svg"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
html_theme_options = {"light_logo": "logo.svg", "dark_logo": "logo.svg", "top_of_page_buttons": []}
copybutton_exclude = ".linenos, .gp, .go"


def with_alternative_text(render_image):
    """myst-nb drops the sentence that says what a figure shows."""

    def render(self, data):
        (image,) = render_image(self, data)
        image["alt"] = data.output_metadata.get(data.mime_type, {}).get("alt", "")
        return [image]

    return render


NbElementRenderer.render_image = with_alternative_text(NbElementRenderer.render_image)


def formula(display):
    def visit(translator, node):
        try:
            text = mathml(node.astext(), display)
        except ValueError as error:
            logging.getLogger(__name__).warning("%s", error, location=node)
            text = ""
        translator.body.append(f'<div class="formula">{text}</div>' if display else text)
        raise nodes.SkipNode

    return visit


def keep_indented(app, what, name, thing, options, lines):
    """Equations and code that a docstring indents stand as they are."""
    for number in range(len(lines) - 1, 1, -1):
        paragraph, between, line = lines[number - 2 : number + 1]
        if line.startswith(" ") and not between.strip() and re.match(r"[^\s\d-]", paragraph):
            lines[number:number] = ["::", ""]


def leave_out(app, what, name, thing, skip, options):
    """scikit-learn gives estimators methods that route metadata, with links of its own site."""
    return True if name.endswith(("_request", "_metadata_routing")) else None


def setup(app):
    app.connect("autodoc-skip-member", leave_out)
    app.connect("autodoc-process-docstring", keep_indented, priority=400)  # before numpydoc
    app.add_html_math_renderer("mathml", (formula(False), None), (formula(True), None))
