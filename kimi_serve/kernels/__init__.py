"""Fused experts and quantized linears on CPUs: a C++ library and torch operators over it. Knows tensors; never vLLM."""
