"""What generate says of options without effect, and of what a call of the pipeline warns of."""

import contextlib
import sys
import warnings


def without_effect(args) -> list[str]:
    """What the command line says in vain; of a call's own arguments pipeline/checks.py tells."""
    lines = []
    if not args.reference:
        given = {"--detector": args.detector, "--no-crop": args.no_crop}
        lines += [f"{name} has no effect without --reference" for name in given if given[name]]
    elif args.no_crop and args.detector:
        lines.append(f"--detector {args.detector} has no effect: --no-crop looks for no face")
    if args.image_encoder and not args.method_weights:
        lines.append("--image-encoder has no effect without --method-weights")
    return lines


def warn(message: str):
    print(f"warning: {message}", file=sys.stderr)


@contextlib.contextmanager
def warnings_as_lines():
    """Inside, what a call warns of (pipeline/checks.py) is a line each."""
    from persongen_jax.pipeline.checks import CallWarning

    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message, category, *where, **more):
            if issubclass(category, CallWarning):
                warn(str(message))
            else:
                others(message, category, *where, **more)

        warnings.simplefilter("always", CallWarning)
        warnings.showwarning = show
        yield
