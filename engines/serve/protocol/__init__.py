"""What is asked and answered, as pydantic models: they check bodies and document them."""
