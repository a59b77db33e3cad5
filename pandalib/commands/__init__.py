"""The commands of `python -m pandalib`, a module each: HELP, `add_arguments(parser)` and `main(options) -> exit status`.

Torch and the rest of the library are imported inside `main`, so that `--help` and `doctor` are instant, and speak where torch is broken.
"""
