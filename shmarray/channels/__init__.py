"""Channels: streams of arrays between processes, without a copy.

Owns: `Channel`, `Subscription`, `ChannelStats`. A channel is one block: words that say who has which slot, and the slots.
Must not know: how blocks live, how stores are found.
"""

from shmarray.channels.channel import Channel
from shmarray.channels.making import make
from shmarray.channels.statistics import ChannelStats, SubscriberStats
from shmarray.channels.subscriptions import Subscription

__all__ = ["Channel", "ChannelStats", "SubscriberStats", "Subscription", "make"]
