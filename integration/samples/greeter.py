#!/usr/bin/env python3
"""A gantry plugin in Python: greets, counts its greetings, tells how many images there are.

In the manifest:                                   Then:

    [[exec]]                                           gantry call greeter.hello '{"name": "you"}'
    id = "greeter/python"
    command = ["/usr/lib/gantry/greeter.py"]       Each line of stdin and stdout is a JSON object; stderr is the log.
    requires = ["images", "events"]                bus/src/foreign.rs tells all of the protocol.
    [exec.settings]
    greeting = "hello"
"""
import collections
import json
import os
import sqlite3
import sys


class Problem(Exception):
    """What a caller is refused with: one of gantry's codes, and a sentence."""


class Host:
    """Our end of the conversation. One call at a time; what comes in between waits its turn."""

    def __init__(self):
        self.waiting, self.last = collections.deque(), 0

    def say(self, **line):
        print(json.dumps(line), flush=True)

    def hear(self):
        """The next line that is a call or an answer. Pings are answered at once, lest the host thinks we are stuck."""
        while line := sys.stdin.readline():
            line = json.loads(line)
            if "stop" in line:
                break
            if "ping" in line:
                self.say(pong=line["ping"])
            elif "cancel" not in line:  # nobody waits any more: a hint that we are quick enough to ignore
                return line
        sys.exit(0)

    def call(self, method, request, **context):
        """Calls another plugin and waits for its answer."""
        self.last += 1
        self.say(id=self.last, call=method, request=request, **context)
        while "call" in (line := self.hear()):
            self.waiting.append(line)
        if "error" in line:
            raise Problem(line["error"]["code"], line["error"]["message"])
        return line["answer"]

    def serve(self, methods):
        self.say(ready=True)
        while True:
            call = self.waiting.popleft() if self.waiting else self.hear()
            try:
                if call["call"] not in methods:
                    raise Problem("UNIMPLEMENTED", f"{call['call']}: there is {', '.join(methods)}")
                self.say(id=call["id"], answer=methods[call["call"]](call["request"], call))
            except Problem as problem:
                self.say(id=call["id"], error={"code": problem.args[0], "message": problem.args[1]})
            except Exception as error:  # the call would come again to our successor: no request may end us
                self.say(id=call["id"], error={"code": "INTERNAL", "message": repr(error)})


class Store:
    """The counts, and what was answered to which call. SQLite commits with fsync: kill -9 loses nothing."""

    def __init__(self, folder):
        self.db = sqlite3.connect(os.path.join(folder, "greeter.db"), isolation_level=None)
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.execute("CREATE TABLE IF NOT EXISTS answers (operation TEXT PRIMARY KEY, answer TEXT, at INTEGER)")
        self.db.execute("CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, count INTEGER)")

    def once(self, operation, change):
        """Makes a change and records its answer in one transaction; a repetition gets the recorded answer.

        A call comes again, with the same operation, when its answer may have been lost in a crash. What is not
        idempotent must be recorded, together with what it changed."""
        with self.db:  # commits, or rolls back when something goes wrong
            self.db.execute("BEGIN IMMEDIATE")
            known = self.db.execute("SELECT answer FROM answers WHERE operation = ?", (operation,)).fetchone()
            if known:
                return json.loads(known[0])
            answer = change(self.db)
            self.db.execute("DELETE FROM answers WHERE at < unixepoch() - 86400")  # nobody asks again after a day
            self.db.execute("INSERT INTO answers VALUES (?, ?, unixepoch())", (operation, json.dumps(answer)))
            return answer


host = Host()
start = host.hear()["start"]  # who we are: id, settings, and our folders: root is durable, state until a reboot
store = Store(start["root"])


def hello(request, call):
    if not isinstance(name := request.get("name"), str):
        raise Problem("INVALID_ARGUMENT", "greeter.hello needs a name")

    def greet(db):
        count = "INSERT INTO counts VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1 RETURNING count"
        return {"text": f"{start['settings']['greeting']}, {name}", "count": db.execute(count, (name,)).fetchone()[0]}

    answer = store.once(call["operation"], greet)
    event = {"topic": "/greeter/hello", "event": json.dumps({"name": name, "count": answer["count"]})}
    # With the operation of the call, however often it comes: the event is published once.
    host.call("events.publish", event, namespace=call["namespace"], operation=call["operation"])
    return answer


def images(request, call):
    page = host.call("images.list", {}, namespace=call["namespace"])
    return {"names": [image["name"] for image in page["items"]], "next": page["next"]}


host.serve({"greeter.hello": hello, "greeter.images": images})
