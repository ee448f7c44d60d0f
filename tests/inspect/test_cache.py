"""What an inspection keeps for the next one: by kind, content and region, and what happens if nothing can be kept."""

import sqlite3

from edgecnn.inspect.cache import FILE, Cache

REGION = (0.25, 0.1, 0.5, 0.6)


def keys(*numbers):
    return [f"{number:064x}" for number in numbers]


def test_results_are_kept_for_the_next_inspection_by_kind_and_region(tmp_path):
    path, (one, other) = tmp_path / "a" / "deep" / "kept.sqlite", keys(1, 2)
    first = Cache(path=path)
    first.put("look", [(one, b"old"), (other, b"four")])
    first.put("look", [(one, b"new")])
    first.put("pair", [(one, b"a pair")])
    first.close()
    again, part, elsewhere = (Cache(region=region, path=path) for region in ((0, 0, 1, 1), REGION, (*REGION[:3], 0.7)))
    assert again.get("look", [one, other, *keys(3)]) == {one: b"new", other: b"four"}
    assert again.get("look", [one, other], 4) == {other: b"four"}, "another size is another program's"
    assert again.get("pair", [one]) == {one: b"a pair"} and again.get("lost", [one]) == {}
    part.put("look", [(one, b"part")])
    assert part.get("look", [one, other]) == {one: b"part"} and not elsewhere.get("look", [one])
    assert again.get("look", [one]) == {one: b"new"}
    for cache in (again, part, elsewhere):
        cache.close()


def test_results_of_many_images_are_all_returned(tmp_path):
    for count in (499, 500, 501, 1203):
        cache = Cache(path=tmp_path / f"{count}-{FILE}")
        cache.put("look", [(key, key[-8:].encode()) for key in keys(*range(count - 1))])
        assert cache.get("look", keys(*range(count))) == {key: key[-8:].encode() for key in keys(*range(count - 1))}
        assert cache.get("look", []) == {}
        cache.close()


def test_without_a_file_results_are_kept_in_memory_and_a_note_names_the_file(tmp_path, own_cache):
    (tmp_path / "file").write_bytes(b"")
    notes = []
    cache = Cache(notes.append, path=tmp_path / "file" / FILE)
    cache.put("look", [(*keys(1), b"x")])
    assert cache.get("look", keys(1)) == {keys(1)[0]: b"x"}
    assert len(notes) == 1 and str(tmp_path / "file" / FILE) in notes[0]
    cache.close()
    usual = Cache(notes.append)
    usual.put("look", [(*keys(1), b"y")])
    usual.close()
    assert len(notes) == 1 and [path.name for path in own_cache.rglob("*.sqlite")] == [FILE]
    with sqlite3.connect(own_cache / "edgecnn" / FILE) as database:
        assert database.execute("SELECT COUNT(*) FROM entries").fetchone() == (1,)
