"""The recipe's words as objects: nodes, edges, schedules, spans, turns. No I/O, no Lightning."""

from kdkit.graph.edge import Edge as Edge
from kdkit.graph.node import Node as Node
from kdkit.graph.node import ema as ema
from kdkit.graph.node import frozen as frozen
from kdkit.graph.schedule import Schedule as Schedule
from kdkit.graph.span import Span as Span
from kdkit.graph.stage import Stage as Stage
