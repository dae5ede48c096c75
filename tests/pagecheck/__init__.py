"""What tests/pages.py is made of: it runs the documents' command blocks and follows their links."""


class Failure(Exception):
    """Something is wrong with a page, `line` lines below where it was noticed.

    After a `final` failure the page can't go on.
    """

    def __init__(self, message, line=0, final=False):
        super().__init__(message)
        self.line, self.final = line, final
