# healer's main job, once, end to end. Runs on NixOS (main-job.nix) and on the local machine.
import json

PROFILE = "/nix/var/nix/profiles/system"


def entries(kind):
    out = machine.succeed(f"healer ledger show --json --type {kind}")
    return [json.loads(line) for line in out.splitlines()]


def wait_for(kind, text):
    machine.wait_until_succeeds(
        f"healer ledger show --json --type {kind} | grep -F -- '{text}'", timeout=600
    )


def switch(toplevel):
    machine.succeed(f"nix-env -p {PROFILE} --set {toplevel}")
    # 4: a unit failed. That is what a bad deployment looks like.
    code, _ = machine.execute(f"{toplevel}/bin/switch-to-configuration switch >&2")
    t.assertIn(code, [0, 4])


start_all()
machine.wait_for_unit("multi-user.target")
machine.wait_for_unit("healer.service")
machine.wait_for_unit("counter.service")
base = machine.succeed("readlink -f /run/current-system").strip()
# A NixOS test machine has no system profile until somebody sets it.
machine.succeed(f"nix-env -p {PROFILE} --set {base}")

with subtest("a killed agent runs again, where it was, and the crash is recorded"):
    machine.wait_until_succeeds("test $(cat /var/lib/counter/count) -gt 5", timeout=60)
    pid = machine.succeed("systemctl show -P MainPID counter").strip()
    machine.succeed(f"kill -KILL {pid}")
    wait_for("agent.recovered", "counter")
    machine.wait_until_succeeds("test $(cat /var/lib/counter/count) -gt 5", timeout=60)
    crash = entries("agent.crash")[-1]["data"]
    t.assertEqual((crash["class"], crash["status"]), ("signal", "KILL"))

with subtest("an exit code that must not restart stays down"):
    # systemd 258 kills the whole unit by default otherwise, and that would be no exit code 3.
    machine.succeed("systemctl kill --kill-whom=main --signal=USR1 choosy")
    wait_for("agent.not-restarted", "choosy")
    t.assertEqual(machine.get_unit_property("choosy.service", "ActiveState"), "failed")

with subtest("the first system that holds is known-good"):
    machine.succeed("systemctl start choosy")
    switch(f"{base}/specialisation/good")
    good = machine.succeed("readlink -f /run/current-system").strip()
    wait_for("deployment.known-good", good)

with subtest("a bad deployment is rolled back"):
    switch(f"{base}/specialisation/bad")
    bad = machine.succeed(f"readlink -f {base}/specialisation/bad").strip()
    wait_for("deployment.condemned", bad)
    t.assertEqual(machine.succeed("readlink -f /run/current-system").strip(), good)
    # A specialisation is booted through its base system, so that is what the profile goes back to.
    t.assertEqual(machine.succeed(f"readlink -f {PROFILE}").strip(), base)
    machine.wait_until_succeeds("systemctl is-active counter", timeout=60)
    intents = [e for e in entries("action.intent") if e["data"]["action"] == "rollback"]
    t.assertEqual(len(intents), 1)

with subtest("a drop-in that nobody declared is found"):
    machine.succeed(
        "mkdir -p /run/systemd/system/counter.service.d",
        "echo '[Service]' > /run/systemd/system/counter.service.d/sneaky.conf",
    )
    wait_for("drift.found", "sneaky.conf")

with subtest("the ledger proves it, and a changed byte shows"):
    machine.succeed("healer ledger verify", "healer incidents")
    machine.succeed("cp -r /var/lib/healer/ledger /tmp/copy")
    machine.succeed('sed -i \'0,/"agent.crash"/s//"agent.crush"/\' /tmp/copy/*.jsonl')
    code, out = machine.execute("healer ledger verify /tmp/copy")
    t.assertEqual(code, 2)
    t.assertIn("entry", out)
