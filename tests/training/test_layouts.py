"""Data sets as people have them: folders, splits, CSVs, competitions, and what is wrong with them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loupe.errors import UserError
from loupe.training.data.layout import File, Layout, Source, find
from loupe.training.data.names import files_below, printable_path, split_of


def fill(root: Path, *names: str) -> Path:
    """Create files of these names: only names tell what they are."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\xff\xd8 not looked into here")
    return root


def table(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)
    return path


def seen(root: Path, files: list[File]) -> list[tuple[str, str, str]]:
    return [(file.path.relative_to(root).as_posix(), file.label, file.split) for file in files]


def labelled(layout: Layout) -> dict[str, str]:
    return {file.path.name: file.label for file in layout.files}


def test_a_folder_is_a_class_with_all_that_lies_below_it(tmp_path: Path) -> None:
    fill(tmp_path, "red/2.jpg", "red/deep/er/1.jpg", "a blue 🫐/b.png", "note.txt")
    layout = find(Source(tmp_path))
    assert layout.labels == ("a blue 🫐", "red")
    expected = [("a blue 🫐/b.png", "a blue 🫐", ""), ("red/2.jpg", "red", ""), ("red/deep/er/1.jpg", "red", "")]
    assert seen(tmp_path, layout.files) == expected
    assert [file.id for file in layout.files] == ["b", "2", "1"]


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("Training", "valid", "testing"),
        ("training_data", "validation-set", "testing_data"),
        ("train_set", "dev", "TestSet"),
        ("trainImages", "Val Images", "images_test"),
    ],
)
def test_split_folders_go_by_any_usual_name(tmp_path: Path, names: tuple[str, str, str]) -> None:
    fill(tmp_path, *(f"{name}/{label}/1.jpg" for name in names for label in ("a", "b")), "docs/readme.jpg")
    files = find(Source(tmp_path)).files
    assert sorted(file.split for file in files) == ["test"] * 2 + ["train"] * 2 + ["validation"] * 2


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    fill(tmp_path, "train/1.jpg", "bus/1.jpg", "plane/1.jpg")
    layout = find(Source(tmp_path))
    assert layout.labels == ("bus", "plane", "train")
    assert {file.split for file in layout.files} == {""}


@pytest.mark.parametrize("name", ["trainers", "valves", "testers", "contest", "dataset", "set", "training wheels"])
def test_other_names_are_no_splits(name: str) -> None:
    assert split_of(name) == ""


@pytest.mark.parametrize("around", ["dataset", "archive/Dataset"])
def test_folders_around_the_data_set_are_looked_through(tmp_path: Path, around: str) -> None:
    names = (f"{around}/{split}/{label}/1.jpg" for split in ("training_data", "testing_data") for label in "ab")
    fill(tmp_path, *names, "archive/licence.txt")
    layout = find(Source(tmp_path))
    assert layout.labels == ("a", "b")
    assert sorted(file.split for file in layout.files) == ["test", "test", "train", "train"]


def test_what_systems_leave_behind_is_neither_class_nor_picture(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "b/1.jpg", "a/.DS_Store", "a/Thumbs.db", "b/._1.jpg", "b/desktop.ini")
    fill(tmp_path, ".ipynb_checkpoints/1.jpg", "__MACOSX/a/1.jpg", "a/.ipynb_checkpoints/1.jpg")
    assert seen(tmp_path, find(Source(tmp_path)).files) == [("a/1.jpg", "a", ""), ("b/1.jpg", "b", "")]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    fill(tmp_path, "elsewhere/pictures/1.jpg", "data/a/1.jpg", "data/c/1.jpg")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "a" / "self").symlink_to("self")
    files = seen(tmp_path / "data", find(Source(tmp_path / "data")).files)
    assert [name for name, _, _ in files] == ["a/1.jpg", "a/self", "b/pictures/1.jpg", "c/1.jpg"]


def test_a_pipe_among_the_pictures_is_not_waited_for(tmp_path: Path) -> None:
    fill(tmp_path, "1.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert [path.name for path in files_below(tmp_path)] == ["1.jpg"]


def test_a_test_folder_without_classes_holds_pictures_to_predict(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/0002.jpg", "test/0001.jpg", "test/notes.md")
    layout = find(Source(tmp_path))
    assert seen(tmp_path, layout.predict) == [("test/0001.jpg", "", "predict"), ("test/0002.jpg", "", "predict")]
    assert layout.submission and layout.submission.ids == ["0001", "0002"]
    assert len(layout.files) == 2


def test_a_lone_folder_within_test_that_is_no_class_holds_pictures_to_predict(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/unknown/1.jpg")
    layout = find(Source(tmp_path))
    assert seen(tmp_path, layout.predict) == [("test/unknown/1.jpg", "", "predict")]


def competition(root: Path) -> Path:
    fill(root, *(f"images/{number:04}.jpg" for number in range(12)))
    rows = "".join(f"{number},{'cup' if number % 2 else 'fork'}\n" for number in range(8))
    table(root / "train.csv", f"Id,label\n{rows}")
    table(root / "test.csv", "Id\n" + "".join(f"{number}\n" for number in range(8, 12)))
    table(root / "sample_submission.csv", "Id,Prediction\n11,cup\n9,cup\n8,cup\n10,cup\n")
    return root


def test_a_competition_is_found_as_it_is_unpacked(tmp_path: Path) -> None:
    layout = find(Source(competition(tmp_path)))
    assert layout.labels == ("cup", "fork")
    assert len(layout.files) == 8 and not layout.skipped
    assert layout.files[3] == File(tmp_path / "images/0003.jpg", "cup", "", "3")
    assert [file.id for file in layout.predict] == ["11", "9", "8", "10"]
    assert [file.path.name for file in layout.predict] == ["0011.jpg", "0009.jpg", "0008.jpg", "0010.jpg"]
    assert layout.submission
    assert (layout.submission.id_column, layout.submission.label_column) == ("Id", "Prediction")


def test_without_a_sample_submission_the_test_csv_says_what_to_predict(tmp_path: Path) -> None:
    competition(tmp_path)
    (tmp_path / "sample_submission.csv").unlink()
    layout = find(Source(tmp_path))
    assert layout.submission and layout.submission.ids == ["8", "9", "10", "11"]
    assert (layout.submission.id_column, layout.submission.label_column) == ("Id", "label")


def test_a_submission_keeps_the_row_of_a_missing_picture(tmp_path: Path) -> None:
    competition(tmp_path)
    (tmp_path / "images/0009.jpg").unlink()
    layout = find(Source(tmp_path))
    assert layout.submission and layout.submission.ids == ["11", "9", "8", "10"]
    assert [file.id for file in layout.predict] == ["11", "8", "10"]
    assert [skipped.category for skipped in layout.skipped] == ["missing"]


def test_train_and_test_pictures_of_the_same_ids_are_not_mixed_up(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{folder}/{number}.jpg" for folder in ("train", "test") for number in range(4)))
    table(tmp_path / "train.csv", "id,class\n0,a\n1,b\n2,a\n3,b\n")
    table(tmp_path / "test.csv", "id\n0\n1\n")
    layout = find(Source(tmp_path))
    assert {file.path.parent.name for file in layout.files} == {"train"}
    assert {file.path.parent.name for file in layout.predict} == {"test"}


def test_a_test_csv_with_labels_measures(tmp_path: Path) -> None:
    fill(tmp_path, *(f"images/{number}.jpg" for number in range(8)))
    table(tmp_path / "train.csv", "id,label\n0,a\n1,b\n2,a\n3,b\n")
    table(tmp_path / "val.csv", "id,label\n4,a\n5,b\n")
    table(tmp_path / "test.csv", "id,label\n6,a\n7,b\n")
    layout = find(Source(tmp_path))
    assert [file.split for file in layout.files] == ["train"] * 4 + ["validation"] * 2 + ["test"] * 2
    assert not layout.predict


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Id,label\n1,red\n2,blue\n", "utf-8-sig"),
        ("Id;label\r\n1;red\r\n2;blue\r\n", "utf-8"),
        ("Id\tlabel\n1\tred\n2\tblue\n", "utf-16"),
        ('"Id", "label"\n"1", "red"\n\n,,\n "2" , "blue" \n', "utf-8"),
        ("label,extra,image_name\nred,x,1\nblue,y,2\n", "utf-8"),
        ("0001.jpg,red\n2.png,blue\n", "utf-8"),
        ("file;species\nscans/0001.jpg;red\nC:\\mine\\scans\\2.png;blue\n", "utf-8"),
        ("thing,what\n1.0,red\n2.0,blue\n", "utf-8"),
    ],
)
def test_a_csv_is_read_as_it_was_saved(tmp_path: Path, text: str, encoding: str) -> None:
    fill(tmp_path, "scans/0001.jpg", "scans/2.png", "scans/0001.txt")
    layout = find(Source(tmp_path, csv=table(tmp_path / "mine.csv", text, encoding)))
    assert labelled(layout) == {"0001.jpg": "red", "2.png": "blue"}
    assert not layout.skipped


def test_the_csv_itself_may_be_named_and_its_pictures_lie_beside_it(tmp_path: Path) -> None:
    fill(tmp_path, "1.jpg", "2.jpg")
    layout = find(Source(table(tmp_path / "any name.csv", "name,label\n1,a/b\n2,c d 🫐\n")))
    assert labelled(layout) == {"1.jpg": "a/b", "2.jpg": "c d 🫐"}


def test_columns_and_the_folder_can_be_given(tmp_path: Path) -> None:
    fill(tmp_path, "pictures/1.jpg", "pictures/2.jpg", "other/1.jpg", "other/2.jpg")
    csv = table(tmp_path / "sheet.csv", "id,scan,finding,label\n7,1,well,x\n8,2,ill,x\n")
    source = Source(tmp_path, csv, tmp_path / "other", id_column="Scan", label_column="finding")
    layout = find(source)
    assert labelled(layout) == {"1.jpg": "well", "2.jpg": "ill"}
    assert {file.path.parent.name for file in layout.files} == {"other"}


def test_an_id_with_a_folder_never_takes_a_picture_from_another(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "b/1.jpg", "b/2.jpg")
    csv = table(tmp_path / "labels.csv", "file,label\na/1.jpg,x\nb/1.jpg,y\na/2.jpg,x\n")
    layout = find(Source(tmp_path, csv))
    assert [(file.path.parent.name, file.label) for file in layout.files] == [("a", "x"), ("b", "y")]
    assert [skipped.category for skipped in layout.skipped] == ["missing", "unused"]


def test_rows_that_cannot_be_used_are_listed_and_the_rest_is_used(tmp_path: Path) -> None:
    fill(tmp_path, *(f"images/{number}.jpg" for number in range(6)), "images/4.png")
    rows = "0,a\n1,b\n99,a\n2,\n3,a\n3,b\n4,a\n0,a\n5,b\n"
    layout = find(Source(tmp_path, table(tmp_path / "train.csv", f"id,label\n{rows}")))
    assert labelled(layout) == {"0.jpg": "a", "1.jpg": "b", "5.jpg": "b"}
    category_and_why = {skipped.path.name: (skipped.category, skipped.why) for skipped in layout.skipped}
    assert (
        category_and_why["99"][0] == "missing"
        and "row 4" in category_and_why["99"][1]
        and "images" in category_and_why["99"][1]
    )
    assert category_and_why["2.jpg"][0] == "unlabelled"
    assert category_and_why["3.jpg"] == ("contradiction", "train.csv gives it 2 labels: 'a', 'b'")
    assert category_and_why["4"][0] == "ambiguous" and "2 files" in category_and_why["4"][1]


def test_a_csv_about_something_else_does_not_hide_the_class_folders(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{label}/{number}.jpg" for label in ("cat", "dog") for number in range(12)))
    table(tmp_path / "counts.csv", "class,count\ncat,3\ndog,4\n")
    assert find(Source(tmp_path)).labels == ("cat", "dog")


REFUSED = {
    "no folder": ([], {}, "There is no folder"),
    "one class": (["a/1.jpg"], {}, "1 class,"),
    "only pictures": (["1.jpg", "2.jpg"], {}, "nothing says their classes"),
    "only in test": (
        ["train/a/1.jpg", "train/b/1.jpg", "test/a/2.jpg", "test/c/2.jpg"],
        {},
        "training pictures of 'c'",
    ),
    "no row fits": (["images/1.jpg"], {"train.csv": "id,label\n8,a\n9,b\n"}, "there is no '8'.*images"),
    "an empty CSV": (["images/1.jpg"], {"train.csv": "\n\n"}, "train.csv is empty"),
    "no labels": (["images/1.jpg"], {"train.csv": "id,size,place\n1,4,x\n"}, "id, size, place by --label-column"),
    "several CSVs": (["1.jpg"], {"one.csv": "id,label\n", "two.csv": "id,label\n"}, "by --csv"),
}


@pytest.mark.parametrize(("names", "tables", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_a_data_set_is_refused_by_name(
    tmp_path: Path, names: list[str], tables: dict[str, str], said: str
) -> None:
    root = fill(tmp_path / "data", *names)
    for name, text in tables.items():
        table(root / name, text)
    with pytest.raises(UserError, match=said) as refused:
        find(Source(root))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["README.md", "1.jpg", "photos.zip"])
def test_a_file_that_is_no_table_is_told_from_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("# Pictures\n\nof cats, and dogs\n")
    with pytest.raises(UserError, match=f"{name} is neither a folder nor a CSV"):
        find(Source(tmp_path / name))


def test_an_empty_class_is_a_class(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.jpg", "train/b/.keep", "test/a/2.jpg", "test/b/2.jpg")
    layout = find(Source(tmp_path))
    assert layout.labels == ("a", "b")
    assert layout.empty == [tmp_path / "train" / "b"]


ONE_HOT = [(number, int(number % 2 == 0), int(number % 2)) for number in range(10)]


@pytest.mark.parametrize(
    "folders",
    [("images",), ("images", "other"), ("train", "test"), ("train_images", "test_images"), ("annotations", "images")],
)
def test_a_table_with_a_column_for_each_class_is_read_as_such(tmp_path: Path, folders: tuple[str, ...]) -> None:
    """Beside several folders it was not: these were taken for classes."""
    pictures = next(folder for folder in folders if folder != "annotations")
    fill(tmp_path, *(f"{pictures}/{number}.jpg" for number in range(10)), *(f"{name}/99.jpg" for name in folders[1:]))
    rows = "".join(f"{number},{cat},{dog}\n" for number, cat, dog in ONE_HOT)
    table(tmp_path / ("annotations" if folders[0] == "annotations" else "") / "train.csv", f"id,cat,dog\n{rows}")
    layout = find(Source(tmp_path))
    assert labelled(layout) == {f"{number}.jpg": "cat" if cat else "dog" for number, cat, _ in ONE_HOT}
    assert layout.source == "train.csv, columns id → one for each class"


def test_tables_with_a_column_for_each_class_measure_too_and_may_have_a_column_of_splits(tmp_path: Path) -> None:
    fill(tmp_path, *(f"images/{number}.jpg" for number in range(10)))
    yes = {True: "True", False: "False"}
    rows = "".join(
        f"{number},{'val' if number > 7 else 'train'},{yes[cat]},{yes[not cat]}\n"
        for number, cat in ((number, number % 2 == 0) for number in range(10))
    )
    table(tmp_path / "labels.csv", f"id,split,cat,dog\n{rows}")
    layout = find(Source(tmp_path))
    assert [file.split for file in layout.files] == ["train"] * 8 + ["validation"] * 2
    assert labelled(layout)["9.jpg"] == "dog"
    # The same with a table for each split.
    (tmp_path / "labels.csv").unlink()
    parts = {"train": ONE_HOT[:6], "val": ONE_HOT[6:8], "test": ONE_HOT[8:]}
    for name, part in parts.items():
        text = "".join(f"{number},{cat},{dog}\n" for number, cat, dog in part)
        table(tmp_path / f"{name}.csv", f"id,cat,dog\n{text}")
    layout = find(Source(tmp_path))
    assert [file.split for file in layout.files] == ["train"] * 6 + ["validation"] * 2 + ["test"] * 2
    assert not layout.skipped and not layout.predict


def test_columns_of_0_and_1_that_are_no_classes_do_not_hide_the_class_folders(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{label}/{label}{number}.jpg" for label in ("cat", "dog") for number in range(9)))
    rows = "".join(f"{label}{number},1,{number % 2}\n" for label in ("cat", "dog") for number in range(9))
    table(tmp_path / "attributes.csv", f"id,indoors,blurred\n{rows}")
    assert find(Source(tmp_path)).labels == ("cat", "dog")


def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column 'name'. Name one of Id, label with --id-column"):
        find(Source(competition(tmp_path), tmp_path / "train.csv", id_column="name"))


def test_a_folder_of_pictures_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--images"):
        find(Source(competition(tmp_path), images=tmp_path / "nowhere"))


@pytest.mark.parametrize("columns", [",image,label", "number,image,label", "id,label", "file,width,label"])
def test_numbers_that_happen_to_name_pictures_are_no_ids(tmp_path: Path, columns: str) -> None:
    """A picture is missing, and so more of the other numbers than of the ids are names of pictures."""
    fill(tmp_path, *(f"images/{number}.jpg" for number in range(12)))
    names = columns.split(",")
    rows = []
    for row, number in enumerate([7, 3, 99, 0, 11, 5, 1, 8]):
        cells = {"": row, "number": row, "width": 9, "label": number % 2}
        rows.append(",".join(str(cells.get(name, number)) for name in names))
    layout = find(Source(tmp_path, table(tmp_path / "train.csv", "\n".join([columns, *rows]))))
    assert labelled(layout) == {f"{number}.jpg": str(number % 2) for number in (7, 3, 0, 11, 5, 1, 8)}
    assert (
        layout.source == f"train.csv, columns {names[-2] if len(names) > 2 and 'image' in names else names[0]} → label"
    )


def test_where_no_picture_has_a_name_of_the_table_its_classes_are_not_taken_for_names(tmp_path: Path) -> None:
    fill(tmp_path, "elsewhere/0.jpg", "elsewhere/1.jpg")
    csv = table(tmp_path / "labels.csv", "filename,width,class\nimg_0.jpg,40,0\nimg_1.jpg,40,1\n")
    with pytest.raises(UserError, match="there is no 'img_0.jpg'"):
        find(Source(tmp_path, csv, tmp_path / "elsewhere"))


@pytest.mark.parametrize(
    "names",
    [
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("asl_alphabet_train/asl_alphabet_train", "asl_alphabet_test"),
        ("train2017", "val2017"),
        ("x_train", "x_val", "x_test"),
        ("01_train", "02_val"),
        ("training_set/training_set", "test_set/test_set"),
        ("flowers_train_small", "flowers_test_small"),
    ],
)
def test_split_folders_are_known_by_what_sets_them_apart(tmp_path: Path, names: tuple[str, ...]) -> None:
    fill(tmp_path, *(f"{name}/{label}/{number}.jpg" for name in names for label in ("a", "b") for number in "12"))
    layout = find(Source(tmp_path))
    assert layout.labels == ("a", "b")
    assert len({file.split for file in layout.files} - {""}) == len(names) and len(layout.files) == 4 * len(names)


def test_pictures_in_one_more_folder_of_a_split_are_found_by_their_csv(tmp_path: Path) -> None:
    fill(tmp_path, *(f"train/train/{number}.jpg" for number in range(4)), "test/test/4.jpg")
    table(tmp_path / "train.csv", "id,has_cactus\n0.jpg,0\n1.jpg,1\n2.jpg,0\n3.jpg,1\n")
    layout = find(Source(tmp_path))
    assert labelled(layout) == {f"{number}.jpg": str(number % 2) for number in range(4)}
    assert seen(tmp_path, layout.predict) == [("test/test/4.jpg", "", "predict")]


def test_a_folder_of_predictions_beside_the_splits_is_predicted(tmp_path: Path) -> None:
    fill(tmp_path, *(f"seg_{name}/seg_{name}/{label}/1.jpg" for name in ("train", "test") for label in "ab"))
    fill(tmp_path, "seg_pred/seg_pred/7.jpg")
    layout = find(Source(tmp_path))
    assert sorted(file.split for file in layout.files) == ["test", "test", "train", "train"]
    assert [file.id for file in layout.predict] == ["7"]


@pytest.mark.parametrize("names", [("train", "test"), ("a", "b", "test"), ("my train", "other val")])
def test_splits_without_classes_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    fill(tmp_path, *(f"{name}/cat.{number}.jpg" for name in names for number in range(3)))
    with pytest.raises(UserError, match="a split of the pictures, or a class"):
        find(Source(tmp_path))


@pytest.mark.parametrize(
    ("train", "test"),
    [("Id,Label\n", "id,label\n"), ("", ""), ("Path,ClassId,Width\n", "Path,ClassId,Width\n")],
)
def test_labelled_validation_and_test_tables_measure_whatever_their_header(
    tmp_path: Path, train: str, test: str
) -> None:
    fill(tmp_path, *(f"images/p{number}.jpg" for number in range(8)))
    more = ",9" if "Width" in train else ""
    rows = [f"p{number}.jpg,{'ab'[number % 2]}{more}\n" for number in range(8)]
    for name, header, rows_of_split in (
        ("train", train, rows[:4]),
        ("valid", test, rows[4:6]),
        ("test", test, rows[6:]),
    ):
        table(tmp_path / f"{name}.csv", header + "".join(rows_of_split))
    layout = find(Source(tmp_path))
    assert [file.split for file in layout.files] == ["train"] * 4 + ["validation"] * 2 + ["test"] * 2
    assert not layout.predict and not layout.skipped


def test_a_validation_table_that_gives_no_labels_is_listed(tmp_path: Path) -> None:
    fill(tmp_path, *(f"images/{number}.jpg" for number in range(6)))
    table(tmp_path / "train.csv", "id,label\n0,a\n1,b\n2,a\n3,b\n")
    table(tmp_path / "val.csv", "id,score,rank\n4,0.1,1\n5,0.2,2\n")
    layout = find(Source(tmp_path))
    assert [skipped_file.path.name for skipped_file in layout.skipped if skipped_file.category == "table"] == [
        "val.csv"
    ]


def test_a_table_of_labels_for_the_test_pictures_beside_class_folders_measures(tmp_path: Path) -> None:
    fill(tmp_path, *(f"Train/{label}/{number}.png" for label in "01" for number in range(3)))
    fill(tmp_path, *(f"Test/0000{number}.png" for number in range(4)))
    rows = "".join(f"40,{number % 2},Test/0000{number}.png\n" for number in range(4))
    table(tmp_path / "Test.csv", f"Width,ClassId,Path\n{rows}")
    layout = find(Source(tmp_path))
    tested = [(file.path.name, file.label) for file in layout.files if file.split == "test"]
    assert tested == [(f"0000{number}.png", str(number % 2)) for number in range(4)] and not layout.predict


def test_a_column_that_says_the_split_is_followed(tmp_path: Path) -> None:
    fill(tmp_path, *(f"images/{number}.jpg" for number in range(6)))
    rows = "0,a,train\n1,b,train\n2,a,\n3,b,val\n4,a,Testing\n5,b,test\n"
    layout = find(Source(tmp_path, table(tmp_path / "mine.csv", f"id,what,split\n{rows}")))
    assert [file.split for file in layout.files] == ["train"] * 3 + ["validation"] + ["test"] * 2


def test_labels_in_the_names_of_pictures_are_seen_and_the_table_for_them_told(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{breed}_{number}.jpg" for breed in ("beagle", "great_pyrenees") for number in range(6)))
    with pytest.raises(
        UserError, match=r"labels and numbers \(beagle, great_pyrenees\).*such as beagle_0,beagle, below"
    ):
        find(Source(tmp_path))
    rows = "".join(f"{path.stem},{path.stem.rpartition('_')[0]}\n" for path in tmp_path.glob("*.jpg"))
    layout = find(Source(tmp_path, table(tmp_path / "labels.csv", f"id,label\n{rows}")))
    assert layout.labels == ("beagle", "great_pyrenees"), "as it was told"
    others = tmp_path / "others"
    fill(others, *(f"IMG_{number}.jpg" for number in range(12)))
    with pytest.raises(UserError) as told:
        find(Source(others))
    assert "labels and numbers" not in str(told.value)


@pytest.mark.parametrize("header", ["is_valid", "isValid", "validation"])
def test_a_column_that_says_yes_of_validation_pictures_is_followed(tmp_path: Path, header: str) -> None:
    """As fastai's tables have it. Beside a column for each class it is none of these."""
    fill(tmp_path, *(f"train/{number}.jpg" for number in range(4)))
    csv = table(tmp_path / "mine.csv", f"fname,labels,{header}\n0,a,False\n1,b,False\n2,a,True\n3,b,True\n")
    layout = find(Source(tmp_path, csv))
    assert [file.split for file in layout.files] == ["train"] * 2 + ["validation"] * 2
    assert layout.source == f"mine.csv, columns fname → labels, splits by {header}"
    csv = table(tmp_path / "mine.csv", f"fname,cat,dog,{header}\n0,1,0,0\n1,0,1,0\n2,1,0,1\n3,0,1,1\n")
    layout = find(Source(tmp_path, csv))
    assert [(file.label, file.split) for file in layout.files] == [
        ("cat", "train"), ("dog", "train"), ("cat", "validation"), ("dog", "validation"),
    ]  # fmt: skip
    csv = table(tmp_path / "mine.csv", f"fname,labels,{header}\n0,a,1\n1,b,1\n2,a,1\n3,b,0\n")
    assert {file.split for file in find(Source(tmp_path, csv)).files} == {""}, "most say yes, which means another thing"
    csv = table(tmp_path / "mine.csv", f"fname,{header}\n0,0\n1,1\n2,0\n3,1\n")
    assert {file.label for file in find(Source(tmp_path, csv, label_column=header)).files} == {"0", "1"}


def test_a_column_for_each_class_is_one_label_each_and_asks_for_probabilities(tmp_path: Path) -> None:
    fill(tmp_path, *(f"images/{name}{number}.jpg" for name in ("train", "test") for number in range(3)))
    table(tmp_path / "train.csv", "image_id,sick,healthy\ntrain0,1,0\ntrain1,0,1\ntrain2,1,0\n")
    table(tmp_path / "sample_submission.csv", "image_id,sick,healthy\ntest1,0.5,0.5\ntest0,0.5,0.5\n")
    layout = find(Source(tmp_path))
    assert labelled(layout) == {"train0.jpg": "sick", "train1.jpg": "healthy", "train2.jpg": "sick"}
    assert layout.submission and layout.submission.columns == ("sick", "healthy")
    assert layout.submission.ids == ["test1", "test0"] and layout.submission.id_column == "image_id"
    table(tmp_path / "train.csv", "image_id,sick,healthy\ntrain0,1,1\ntrain1,0,1\n")
    with pytest.raises(UserError, match="Row 2 of .* has 2 classes"):
        find(Source(tmp_path))


def test_pictures_to_predict_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
    fill(tmp_path, "test/x/0.jpg", "test/x/y/0.jpg", "test/0.jpg", "test/0.png", "test/7.jpg")
    assert [file.id for file in find(Source(tmp_path)).predict] == ["0.jpg", "0.png", "7", "x/0", "x/y/0"]


def test_pictures_that_no_rule_takes_are_listed(tmp_path: Path) -> None:
    fill(tmp_path / "one", "a/1.jpg", "b/1.jpg", "loose.jpg", "readme.txt")
    fill(tmp_path / "two", "train/a/1.jpg", "train/b/1.jpg", "val/1.jpg", "extra/1.jpg")
    fill(tmp_path / "three", "images/1.jpg", "images/2.jpg", "images/3.jpg")
    table(tmp_path / "three/train.csv", "id,label\n1,a\n2,b\n")
    expected = {"one": ["loose.jpg"], "two": ["extra/1.jpg", "val/1.jpg"], "three": ["images/3.jpg"]}
    for name, unused in expected.items():
        skipped = find(Source(tmp_path / name)).skipped
        assert [skipped_file.path.relative_to(tmp_path / name).as_posix() for skipped_file in skipped] == unused
        assert {skipped_file.category for skipped_file in skipped} == {"unused"}


def test_a_row_with_more_cells_than_the_header_or_without_an_id_is_listed(tmp_path: Path) -> None:
    fill(tmp_path, *(f"images/{number}.jpg" for number in range(4)))
    rows = "0,a\n1,b,,\n2,red, blue\n,a\n3,b\n"
    layout = find(Source(tmp_path, table(tmp_path / "train.csv", f"id,label\n{rows}")))
    assert labelled(layout) == {"0.jpg": "a", "1.jpg": "b", "3.jpg": "b"}
    why_of = {skipped_file.category: skipped_file.why for skipped_file in layout.skipped}
    assert "row 4 has 3 cells" in why_of["cells"] and why_of["no id"] == "row 5 gives no id"


@pytest.mark.parametrize("start", ["\n\n", "sep=;\n", '"sep=;"\r\n', " \n;;\n"])
def test_what_stands_before_a_header_does_no_harm(tmp_path: Path, start: str) -> None:
    fill(tmp_path, "images/1.jpg", "images/2.jpg")
    layout = find(Source(tmp_path, table(tmp_path / "train.csv", f"{start}id;label\n1;a, or so\n2;b\n")))
    assert labelled(layout) == {"1.jpg": "a, or so", "2.jpg": "b"}


def test_a_table_without_rows_and_a_picture_in_its_place_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, "images/1.jpg")
    with pytest.raises(UserError, match="has no rows below its header"):
        find(Source(tmp_path, table(tmp_path / "train.csv", "id,label\n")))
    (tmp_path / "picture.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF\0")
    with pytest.raises(UserError, match="is no text"):
        find(Source(tmp_path, tmp_path / "picture.jpg"))


def test_a_table_in_a_folder_of_its_own_is_found(tmp_path: Path) -> None:
    fill(tmp_path, *(f"images/{number}.jpg" for number in range(8)))
    rows = "".join(f"{number},{'ab'[number % 2]}\n" for number in range(8))
    table(tmp_path / "annotations/labels.csv", f"id,label\n{rows}")
    assert len(find(Source(tmp_path)).files) == 8


def test_one_name_written_in_two_ways_is_one_class(tmp_path: Path) -> None:
    fill(tmp_path, *(f"train/{name}/1.jpg" for name in ("Cafe\u0301", "b")), "val/Caf\u00e9/1.jpg")
    assert find(Source(tmp_path)).labels == ("Caf\u00e9", "b")
    fill(tmp_path / "listed", "images/e\u0301.jpg", "images/2.jpg", "images/3.jpg")
    csv = table(tmp_path / "listed/train.csv", "id,label\n\u00e9,Cafe\u0301\n2,Caf\u00e9\n3,b\n")
    layout = find(Source(tmp_path / "listed", csv))
    assert layout.labels == ("Caf\u00e9", "b") and len(layout.files) == 3


def test_names_cannot_write_on_a_terminal(tmp_path: Path) -> None:
    assert printable_path(Path("a\x1b[31m\n\u202egpj.exe\u2066")) == "a\ufffd[31m\ufffd\ufffdgpj.exe\ufffd"
    fill(tmp_path, "red\x07/1.jpg", "blue/1.jpg")
    assert find(Source(tmp_path)).labels == ("blue", "red\ufffd")


def test_a_link_into_another_class_is_not_followed(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{split}/{label}/deep/1.jpg" for split in ("train", "test") for label in ("a", "b")))
    links = {"all": "..", "other": "../b", "part": "../b/deep", "tested": "../../test/a", "everything": "../.."}
    for name, target in links.items():
        (tmp_path / "train" / "a" / name).symlink_to(target)
    names = [name for name, _, _ in seen(tmp_path, find(Source(tmp_path)).files)]
    assert names == [f"{split}/{label}/deep/1.jpg" for split in ("test", "train") for label in ("a", "b")]
