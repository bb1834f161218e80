"""What stands between sockets and Flask: gunicorn's threaded worker, changed so that no slow client can hold a thread.

In: connections, however slow or broken. Out: whole requests, each given to a thread that runs the Flask app.

worker (`Worker`: deadlines, and the way from SIGTERM to the end) extends front (`Front`: receives requests, hands
them to threads), which extends parting (`Parting`: sends answers, refuses, closes connections).
framing tells where a request ends; connection is one client's; pool has the threads; listeners closes the sockets.
ports checks before the start that the ports are free.
"""
