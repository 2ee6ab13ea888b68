from app.domain.normalization.view import View, ViewName, rewrite


def test_unchanged_view_maps_to_itself():
    view = View(ViewName.PLAIN, "abc")
    assert view.to_original(1, 3) == (1, 3)
    assert rewrite(view, []) is view


def test_replacement_of_other_length_maps_to_all_it_replaced():
    view = rewrite(View(ViewName.PLAIN, "say QUJD now"), [(4, 8, "abc")])
    assert view.text == "say abc now"
    assert view.to_original(5, 6) == (4, 8)
    assert view.to_original(8, 11) == (9, 12)


def test_replacement_of_same_length_maps_character_by_character():
    view = rewrite(View(ViewName.PLAIN, "k1ll"), [(0, 4, "kill")])
    assert view.to_original(1, 2) == (1, 2)


def test_rewriting_twice_leads_to_the_first_text():
    once = rewrite(View(ViewName.PLAIN, "a--b--c"), [(1, 3, ""), (4, 6, "")])
    twice = rewrite(once, [(0, 1, "xy")], ViewName.LEET)
    assert (twice.name, twice.text) == (ViewName.LEET, "xybc")
    assert twice.to_original(0, 2) == (0, 1)
    assert twice.to_original(2, 4) == (3, 7)


def test_empty_span_maps_to_a_point():
    emptied = rewrite(View(ViewName.PLAIN, "abc"), [(0, 3, "")])
    assert emptied.to_original(0, 0) == (0, 0)
    shortened = rewrite(View(ViewName.PLAIN, "abc"), [(0, 1, "")])
    assert shortened.to_original(0, 0) == (1, 1)
    assert shortened.to_original(2, 2) == (3, 3)


def test_text_stays_out_of_the_representation():
    assert "marker" not in repr(View(ViewName.PLAIN, "marker"))
