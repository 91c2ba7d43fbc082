"""`python -m gsforge.render.cpu`: compile the kernels now, before many processes would each do it."""

from gsforge.render.cpu.warm import warm_up

warm_up("float32")
