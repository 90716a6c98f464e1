"""The table of strategies is drawn with the names that strategies have."""

from optuna_nas.plots.comparison import draw_table


def test_a_dollar_of_a_name_is_drawn_as_it_is():
    figure = draw_table("a is ahead", ("strategy", "best $"), [["a $ b", "0.5"]])
    assert [text.get_text() for text in figure.texts] == ["a is ahead", "strategy", "best $", "a $ b", "0.5"]
