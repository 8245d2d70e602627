"""The validation rules, one function each, in one module per noun."""
