#!/usr/bin/env python3
"""Compares what lies in a store with the rows of its catalog, and names what is lost or left over.

    audit.py --psql URL --store ROOT [--dataset POOL/NAME]

Nothing of the server is asked and no code of it is used: rows come from raw SQL, a store in
files from its files, one on ZFS from `zfs list` and `zfs holds`. The server must be at rest:
nothing under way, all that was begun settled. Prints one line for each thing that is wrong and
ends with 1 if there is any.
"""

import argparse
import json
import os
import subprocess
import sys
import uuid


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        sys.exit(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout


def queries(url, *all):
    """The rows of each query, as lists of text."""
    words = [word for sql in all for word in ("-c", "\\echo @@", "-c", sql)]
    out = run("psql", "-X", "-At", "-F", "\t", url, *words)
    return [[line.split("\t") for line in part.splitlines()] for part in out.split("@@\n")[1:]]


class Disk:
    def __init__(self, size, origin):
        self.size = size
        self.origin = origin  # (volume, snapshot) or None
        self.snapshots = set()


def in_files(root, wrong):
    """Disks and holds of a store in files."""
    disks, holds, named = {}, [], {}
    folder = os.path.join(root, "disks", "volumes")
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            manifest = json.loads(file.readline())
        volume = manifest["volume"]
        if name != volume.replace("/", ".") + ".json":
            wrong.append(f"the manifest {name} is of {volume}")
        origin = tuple(manifest["origin"]) if manifest["origin"] else None
        disk = disks[volume] = Disk(manifest["size"], origin)
        layers = [layer for _, layer in manifest["snapshots"]] + [manifest["top"]]
        disk.snapshots = {snapshot for snapshot, _ in manifest["snapshots"] if snapshot}
        for layer in layers:
            if layer in named:
                wrong.append(f"the layer {layer} is of {named[layer]} and of {volume}")
            named[layer] = volume
    folder = os.path.join(root, "disks", "layers")
    there = set(os.listdir(folder))
    for layer in named:
        if layer not in there:
            wrong.append(f"LOST: the layer {layer} of {named[layer]}")
    for file in there - set(named):
        of = file.rsplit(".", 1)
        if of[1] != "journal" or not any(layer.startswith(of[0] + ".") for layer in named):
            wrong.append(f"ORPHAN: the file disks/layers/{file}")
    left = os.listdir(os.path.join(root, "disks", "staging"))
    wrong.extend(f"ORPHAN: the file disks/staging/{file}" for file in left)
    for name in os.listdir(os.path.join(root, "disks", "holds")):
        volume, snapshot, tag = name.split("@")
        holds.append((volume.replace(".", "/"), snapshot, tag))
    return disks, holds


def word(text):
    """`image.HEX` as `image/UUID`; None for what is no volume's name."""
    kind, *ids = text.split(".")
    if kind not in ("image", "session", "personal") or len(ids) != (2 if kind == "personal" else 1):
        return None
    try:
        return "/".join([kind] + [str(uuid.UUID(hex=i)) for i in ids])
    except ValueError:
        return None


def snapshot_word(text):
    """`image.HEX.NAME` as (volume, name): the owner, wherever it lies."""
    parts = text.split(".")
    count = 3 if parts[0] == "personal" else 2
    volume = word(".".join(parts[:count]))
    return (volume, ".".join(parts[count:])) if volume and len(parts) > count else None


def on_zfs(dataset, wrong):
    """Disks and holds of a store on ZFS. All below the dataset has to be known by its name."""
    disks, snapshots, held, grounds = {}, [], [], {}
    columns = "name,type,volsize,origin,userrefs,dls:size,dls:origin,dls:intent,defer_destroy,clones"
    listed = run("zfs", "list", "-Hp", "-r", "-t", "all", "-o", columns, dataset)
    rows = [line.split("\t") for line in listed.splitlines()]
    for name, kind, volsize, stands_on, holds, size, origin, intent, leaves, clones in rows:
        if name == dataset:
            continue
        below = name[len(dataset) + 1:]
        place, _, snapshot = below.partition("@")
        volume, owned = word(place), snapshot_word(snapshot)
        if kind == "snapshot" and volume and owned:
            # ZFS removes it with the last clone that stands upon it.
            leaving = leaves == "on" and clones not in ("-", "")
            snapshots.append((owned, volume, leaving))
            if holds not in ("-", "0"):
                held.append(name)
        elif kind == "volume" and volume:
            if intent != "-":
                wrong.append(f"the dataset {name} has the intention `{intent}`")
            if size == "-":
                # Its pool lost its power before ZFS had written the properties of a clone.
                if stands_on == "-":
                    wrong.append(f"the dataset {name} has no size and is no clone")
                size, origin = volsize, stands_on.partition("@")[2]
            disks[volume] = Disk(int(size) if size.isdigit() else None, snapshot_word(origin))
            if not 0 < (disks[volume].size or 0) <= int(volsize):
                wrong.append(f"the dataset {name} has the size {size} in {volsize} bytes")
            grounds[volume] = stands_on
        else:
            wrong.append(f"ORPHAN: the {kind} {name}")
    for (volume, snapshot), lies, leaving in snapshots:
        if volume not in disks:
            if not leaving:
                wrong.append(f"ORPHAN: the snapshot {snapshot} of {volume}, which is not there")
        elif snapshot in disks[volume].snapshots:
            wrong.append(f"the snapshot {snapshot} of {volume} is there twice, once in {lies}")
        else:
            disks[volume].snapshots.add(snapshot)
    names = {row[0] for row in rows}
    for volume, stands_on in grounds.items():
        if stands_on != "-" and stands_on not in names:
            wrong.append(f"LOST: {volume} stands upon {stands_on}")
    holds = []
    if held:
        for line in run("zfs", "holds", "-H", *held).splitlines():
            name, tag, _ = line.split("\t")
            if tag.startswith("dls:"):
                owner, snapshot = snapshot_word(name.partition("@")[2])
                holds.append((owner, snapshot, tag[len("dls:"):]))
    return disks, holds


def is_unfinished(upload):
    """Not all of the bytes are there that were announced."""
    try:
        with open(os.path.join(upload, "record")) as record:
            total = json.load(record).get("total")
        return total is not None and os.path.getsize(os.path.join(upload, "data")) < total
    except (OSError, ValueError):
        # Without a record it is nothing that anybody could go on with.
        return False


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--psql", required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--dataset")
    asked = parser.parse_args()
    wrong = []
    disks, holds = on_zfs(asked.dataset, wrong) if asked.dataset else in_files(asked.store, wrong)

    images, versions, clients, in_use, files = queries(
        asked.psql,
        "SELECT id, name, kind, size_bytes FROM images",
        "SELECT id, image_id, name, stage FROM image_snapshots",
        "SELECT id FROM clients",
        """
        SELECT version_id, 'an open boot' FROM boot_attempts WHERE ended_at IS NULL AND version_id IS NOT NULL
        UNION SELECT pinned_version, 'a pinned client' FROM clients WHERE pinned_version IS NOT NULL
        UNION SELECT id, stage FROM image_snapshots WHERE stage IN ('production', 'canary')""",
        "SELECT image_id, path, size_bytes FROM image_files")
    clients = {row[0] for row in clients}

    def whole(volume):
        return volume in disks and "base" in disks[volume].snapshots

    for id, name, kind, size in images:
        volume = f"image/{id}"
        if kind != "disk":
            continue
        if not whole(volume):
            wrong.append(f"LOST: the disk of the image {name} ({id})")
        elif str(disks[volume].size) != size:
            wrong.append(f"the image {name} has {size} bytes by its row and {disks[volume].size} in the store")
        if sum(1 for v in versions if v[1] == id and v[3] == "production") != 1:
            wrong.append(f"the image {name} has not just one version in production")
    for id, _, name, _ in versions:
        if not whole(f"image/{id}"):
            wrong.append(f"LOST: the disk of the version {name} ({id})")
    for id, why in in_use:
        if not whole(f"image/{id}"):
            wrong.append(f"LOST: the version {id}, which is in use: {why}")

    image_ids = {row[0] for row in images}
    known = image_ids | {row[0] for row in versions}
    for volume, disk in disks.items():
        kind, *ids = volume.split("/")
        if kind == "image" and ids[0] not in known:
            wrong.append(f"ORPHAN: {volume} is of no image and no version")
        if kind == "personal" and (ids[0] not in clients or ids[1] not in image_ids):
            wrong.append(f"ORPHAN: {volume} is of no client or no image")
        if disk.origin:
            origin, snapshot = disk.origin
            if origin not in disks or snapshot not in disks[origin].snapshots:
                wrong.append(f"LOST: {volume} was made from {origin}@{snapshot}")
        for snapshot in disk.snapshots:
            if snapshot.startswith("version-") and str(uuid.UUID(hex=snapshot[8:])) not in known:
                wrong.append(f"ORPHAN: the snapshot {volume}@{snapshot} is for no version")

    for volume, snapshot, tag in holds:
        if volume not in disks or snapshot not in disks[volume].snapshots:
            wrong.append(f"ORPHAN: a hold on {volume}@{snapshot}, which is not there ({tag})")
        if tag.startswith("clone."):
            clone = word(tag[len("clone."):])
            if clone not in disks or disks[clone].origin != (volume, snapshot):
                wrong.append(f"ORPHAN: a hold on {volume}@{snapshot} for {clone}, which does not need it")
    for volume, disk in disks.items():
        if not volume.startswith("image/") and disk.origin:
            tag = "clone." + volume.replace("-", "").replace("/", ".")
            if (*disk.origin, tag) not in holds:
                wrong.append(f"{volume} does not hold {disk.origin[0]}@{disk.origin[1]}")

    folder = os.path.join(asked.store, "images")
    there = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    for id in there - {row[0] for row in files}:
        wrong.append(f"ORPHAN: the folder images/{id}")
    for id, path, size in files:
        place = os.path.join(asked.store, path)
        if not os.path.isfile(place) or str(os.path.getsize(place)) != size:
            wrong.append(f"LOST: the file {path}")
    for rest in ("pending", "staging", "uploads"):
        folder = os.path.join(asked.store, rest)
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            if rest == "uploads" and is_unfinished(os.path.join(folder, name)):
                # Nothing was promised yet: whoever uploads goes on with it, or it is removed after a day.
                continue
            wrong.append(f"ORPHAN: {rest}/{name}")

    for line in wrong:
        print(line)
    print(f"{len(disks)} disks, {len(holds)} holds, {len(images)} images, {len(versions)} versions: {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


main()
