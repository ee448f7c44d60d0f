from edgecnn.errors import first_line


def test_a_librarys_error_is_shown_as_its_first_line_or_its_type():
    assert first_line(ValueError("\nno such layer\nat line 3")) == "no such layer"
    assert first_line(KeyError()) == "KeyError"
