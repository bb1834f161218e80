"""What stands between sockets and Flask: gunicorn's master, uvicorn's HTTP, and threads for the Flask app.

In: connections, however slow or broken. Out: whole requests, each given to a thread that runs the Flask app.

worker (`Worker`, gunicorn's worker class: what uvicorn is told, and how a worker ends) runs asgi (`Door`: gathers
bodies, hands requests to threads, sends the answers), which needs admission (how long the next would wait, and how many
bytes of bodies there are) and environ (a request as WSGI has it). connection is one client's: its deadlines and sizes;
crowd knows all of them, which end where there are too many, and whose turn it is to be parsed. dealing shares
connections out evenly among workers, joining sends an answer in one piece. ports checks before the start that the ports
are free; listeners closes them so that nobody is reset.
"""
