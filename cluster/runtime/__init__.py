"""Ray, for the rest of Manta: the only files of the floor that import it.

session.py       the Ray of a driver: a cluster's, or a private one; start here
private/         a Ray of one driver's own
join/            a cluster that is there already: checked before Ray connects
nodes/           a function on every node; GPU memory as a resource
channel.py       events of workers on any node
jobs/            runs as Ray jobs, over HTTP
node.py          `python -m cluster.runtime.node ray start …`
environment.py   the variables that Ray's processes read
preflight.py     what a run will need at its end, asked at its start; extras.py and ports.py for it
ray_private.py   every use of Ray that Ray does not document
"""
