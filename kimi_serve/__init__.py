"""kimi_serve: Kimi-VL in production. Knows its version; everything else lives in the packages below."""

__version__ = "0.1.0"
