"""``python -m stokehold`` says what the package is for: a worker is a program of its own."""

from .worker import serve

if __name__ == "__main__":
    serve()
