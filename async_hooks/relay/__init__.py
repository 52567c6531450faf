"""What carries envelopes from where they wait to where they run.

Who owns a delivery of the outbox, and what happens when its owner dies:

- A delivery that is ``available`` belongs to nobody; any process may claim it.
- Claimed, it belongs to the process that claimed it, and lies in its memory until a sender takes
  it. If the process dies, the others release it: no attempt was used.
- Begun, it belongs to the process that executes it. If that dies, who holds the connection sees
  it at once, and else the others do: a crash is counted, and it is claimed again.
- Completed, in the transaction that says so, it is finished. If the process dies before, it runs
  once more; after, nothing is left to do. Every other ending is recorded by the sender; if that
  dies before, by the process that executed it, and if both died, it counts as a crash.

That a process died, the others on its machine see by its lock, at once; and everywhere by its
heartbeat, which did not change during three of their own. A process that was only frozen finds,
when it goes on, that its leases are no longer the delivery's, and that its results are ignored.
"""
