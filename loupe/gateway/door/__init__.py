"""What stands between sockets and Flask: gunicorn's threaded worker, behind a front that lets no client hold a thread.

In: connections, however slow or broken. Out: whole requests, each given to a thread that runs the Flask app.

worker (the loop's deadlines, and the way from SIGTERM to the end) is a front (how requests come in and what threads do
for them), which is a parting (how answers leave). These three are one class, in three files by inheritance.
framing tells where a request ends, connection is one client's, pool the threads, listeners the sockets listened on.
ports says before anything starts that a port is taken; malloc gives free memory back.
"""
