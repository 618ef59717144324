"""The demonstration on the tiny model: servers in processes of their own, one of which is killed on the way."""

from __future__ import annotations

from dimec.bundle import Bundle
from dimec.cli.demo import demonstrate
from dimec.core.tiers import TIERS, Tier
from dimec.runs.run import Run


def test_every_text_is_answered_though_a_server_is_killed(
    tiny_run: Run, tiny_bundle: Bundle
) -> None:
    seen: list[int] = []
    summary = demonstrate(
        tiny_run, tiny_bundle.folder, limit=15, seen=lambda so_far: seen.append(len(so_far.answers))
    )
    assert seen == list(range(1, 16))
    assert [answer.index for answer in summary.answers] == list(range(15))
    assert summary.events == [(5, "edge server killed"), (10, "edge server started again")]
    assert summary.exit_codes == {Tier.EDGE: 0, Tier.CLOUD: 0}
    assert sum(summary.share(tier) for tier in TIERS) == 1
    assert all(summary.requests[tier] > 0 for tier in (Tier.EDGE, Tier.CLOUD))
