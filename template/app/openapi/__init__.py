"""The OpenAPI document: what each operation accepts and sends."""
