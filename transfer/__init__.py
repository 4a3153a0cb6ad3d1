"""Transfer of encoders to tasks: labelled images in, a trained model out."""

from ..callable_package import make_callable

make_callable(__name__)
