from __future__ import annotations

import yaml

UIDS = {"operators.json": "sluiceway-operators", "safety.json": "sluiceway-safety"}
WIDTH = 24


def provisioned(root):
    folder = root / "deploy/grafana/provisioning"
    sources = yaml.safe_load((folder / "datasources/prometheus.yml").read_text("utf-8"))
    providers = yaml.safe_load((folder / "dashboards/sluiceway.yml").read_text("utf-8"))
    return sources["datasources"], providers["providers"]


def test_each_dashboard_has_a_uid_that_links_can_rely_on(dashboards) -> None:
    assert {name: board["uid"] for name, board in dashboards.items()} == UIDS
    for board in dashboards.values():
        for link in board["links"]:
            assert link["url"].removeprefix("/d/") in set(UIDS.values()) - {board["uid"]}


def test_everything_asks_the_provisioned_source(dashboards, root) -> None:
    (source,), _ = provisioned(root)
    expected = {"type": source["type"], "uid": source["uid"]}
    for board in dashboards.values():
        charts = [panel for panel in board["panels"] if panel["type"] != "row"]
        askers = charts + board["templating"]["list"] + board["annotations"]["list"]
        askers += [target for panel in charts for target in panel["targets"]]
        assert all(asker["datasource"] == expected for asker in askers)


def test_the_source_and_the_folder_are_those_of_the_composition(root) -> None:
    compose = yaml.safe_load((root / "docker-compose.yml").read_text("utf-8"))
    (source,), (provider,) = provisioned(root)
    assert source["url"] == "http://prometheus:9090"
    folder = provider["options"]["path"]
    assert f"./deploy/grafana/dashboards:{folder}:ro" in compose["services"]["grafana"]["volumes"]


def test_every_panel_says_what_it_shows_and_in_which_unit(dashboards) -> None:
    for board in dashboards.values():
        for panel in board["panels"]:
            if panel["type"] != "row":
                assert panel["title"]
                assert panel["description"].endswith(".")
                assert panel["targets"]
                assert "unit" in panel["fieldConfig"]["defaults"] or panel["type"] == "heatmap"


def test_panels_are_told_apart_and_do_not_overlap(dashboards) -> None:
    for board in dashboards.values():
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            cells = {
                (place["x"] + column, place["y"] + row)
                for column in range(place["w"])
                for row in range(place["h"])
            }
            assert place["x"] + place["w"] <= WIDTH
            assert not cells & taken
            taken |= cells


def test_every_variable_is_used(dashboards) -> None:
    for board in dashboards.values():
        text = " ".join(t["expr"] for panel in board["panels"] for t in panel.get("targets", []))
        for variable in board["templating"]["list"]:
            assert f"${variable['name']}" in text
