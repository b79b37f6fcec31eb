from listener.suggest import did_you_mean


def test_closest_name_is_suggested() -> None:
    assert did_you_mean("vesion", ["version", "proxy"]) == ', did you mean "version"?'
    assert did_you_mean("exchange2013_sp1", ["Exchange2013_SP1", "Exchange2016"]) == (
        ', did you mean "Exchange2013_SP1"?'
    )


def test_short_lists_of_names_are_shown() -> None:
    assert did_you_mean("x", ["beta", "alpha"]) == "; known: alpha, beta"
    assert did_you_mean("x", map(str, range(100, 200))) == ""
    assert did_you_mean("x", []) == ""
