"""Where the runs of a suite run: in this process, in processes side by side, or on a Ray cluster."""

from kdkit.bench.engines.engine import Answer as Answer
from kdkit.bench.engines.engine import Engine as Engine
from kdkit.bench.engines.here import Here as Here
from kdkit.bench.engines.processes import Processes as Processes
