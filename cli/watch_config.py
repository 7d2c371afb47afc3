"""What a config says of those who look on: how a run is watched, and who is told how it ended."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from .config_types import ConfigPath, LogPath, Section

__all__ = ["HookEvent", "Hooks", "Watch"]

HookEvent = Literal["promote", "keep", "fail", "success"]
"""What a hook waits for: a challenger promoted, or kept back; a command that did not do its work, or did it."""

Argv = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]
"""A command: its program and arguments; no shell reads it."""


class Watch(Section):
    """How a run is watched from outside; nothing here changes what is stored."""

    log: Annotated[LogPath | None, Field(strict=False)] = None
    """one JSON line an event is appended to this file; "-": standard error"""
    heartbeat: Annotated[ConfigPath | None, Field(strict=False)] = None
    """file that is rewritten while the run is at work, so that a monitor may alarm on its age"""
    every: float = Field(10.0, gt=0, le=86_400)
    """seconds between two heartbeats, and between two lines of progress"""
    metrics: Annotated[ConfigPath | None, Field(strict=False)] = None
    """file that is rewritten at the end of each run, for the textfile collector of Prometheus' node exporter"""


class Hooks(Section):
    """Who is told how a run ended: commands, which get the outcome on standard input, and a folder of files."""

    on_promote: Argv = ()
    """run after a challenger was promoted; not again where the recorded decision is given"""
    on_keep: Argv = ()
    """run after a challenger was kept back"""
    on_fail: Argv = ()
    """run after a command that did not do its work, failed, locked, interrupted, or was to fail on drift"""
    on_success: Argv = ()
    """run after one that did, also where single images failed"""
    drop: Annotated[ConfigPath | None, Field(strict=False)] = None
    """folder in which a file with the outcome appears after each of the events of drop_on"""
    drop_on: tuple[HookEvent, ...] = Field(("promote", "keep", "fail"), strict=False, min_length=1)
    """events that a file is dropped for"""
    timeout: float = Field(60.0, gt=0, le=3_600)
    """seconds after which a command that still runs is killed"""

    def command_for(self, event: HookEvent) -> tuple[str, ...]:
        """Give the command that waits for an event; empty where none does."""
        commands = {
            "promote": self.on_promote,
            "keep": self.on_keep,
            "fail": self.on_fail,
            "success": self.on_success,
        }
        return commands[event]


class StoreConfig(BaseModel):
    """What a command reads of a config that names its store: other sections are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, use_attribute_docstrings=True)

    store: Annotated[ConfigPath, Field(strict=False)]
    """folder of the feature store"""
    watch: Watch = Watch()
    hooks: Hooks = Hooks()
