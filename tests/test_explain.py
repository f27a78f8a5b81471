"""Explaining one's own images: any file, in any form, with a
warning where it is no X-ray and nothing of a patient told.
"""

import dataclasses
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from sklearn.datasets import load_sample_image

from conftest import ROOT, SMALL, run_stage, write_params
from explainmyxray.errors import UserError
from explainmyxray.explaining import explainer
from explainmyxray.explaining.confidence import Calibration, load_calibration
from explainmyxray.explaining.explanation import NOT_FOR_THIS_IMAGE, NOT_MEASURED, Explanation, LikeFindings
from explainmyxray.explaining.files import find_images
from explainmyxray.explaining.loading import load_explainer
from explainmyxray.explaining.remarks import remarks_on
from explainmyxray.generation import sample_reports
from explainmyxray.images.decoding import BadImage
from explainmyxray.images.films import is_colour, open_film
from explainmyxray.model.tuned_on import load_tuned_on
from explainmyxray.reports.findings import FINDINGS, SHOWN_SHARE
from explainmyxray.sources import phantom

PATIENT = "Doe^Jane"


def dicom(pixels: np.ndarray, bits: int, **header) -> bytes:
    """A DICOM file of a patient with a name, holding `pixels` as they are."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = (
        pydicom.uid.DigitalXRayImageStorageForPresentation
    )
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = pydicom.uid.generate_uid(
        entropy_srcs=["a"]
    )
    dataset.PatientName, dataset.PatientID, dataset.StudyDate = PATIENT, "Q4711", "19990101"
    frames = pixels.shape[0] if pixels.ndim == 3 else 1
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = (
        1,
        "MONOCHROME2",
        0,
    )
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = (
        (8, 8, 7) if bits == 8 else (16, bits, bits - 1)
    )
    if frames > 1:
        dataset.NumberOfFrames = frames
    for name, value in header.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.astype(np.uint8 if bits == 8 else "<u2").tobytes()
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def film() -> Image.Image:
    return next(iter(phantom.sample(phantom.PIPELINE, 5, 1, 224))).read()


@pytest.mark.parametrize(
    "bits, header",
    [
        (8, {}),
        (12, {"WindowCenter": 2048, "WindowWidth": 4096}),
        (16, {}),
        (12, {"RescaleSlope": 2, "RescaleIntercept": -100}),
    ],
)
def test_a_dicom_file_shows_the_film_at_any_depth(film, bits, header):
    values = np.asarray(film, float) / 255 * (2**bits - 1)
    shown = np.asarray(open_film(dicom(values.round(), bits, **header)), float)
    expected = np.asarray(film, float)
    expected = (expected - expected.min()) / (expected.max() - expected.min()) * 255
    assert np.abs(shown - expected).max() <= 2


def test_a_dicom_window_cuts_off_what_lies_outside_it(film):
    values = np.asarray(film, float) * 16
    shown = np.asarray(open_film(dicom(values, 12, WindowCenter=2000, WindowWidth=1000)))
    assert (shown[values < 1490] == 0).all() and (shown[values > 2510] == 255).all()


@pytest.mark.parametrize(
    "header",
    [
        {"WindowCenter": None, "WindowWidth": None},
        {"WindowCenter": 100},
        {"WindowWidth": ""},
        {"RescaleSlope": -1, "RescaleIntercept": 255, "PhotometricInterpretation": "MONOCHROME1"},
        {
            "RescaleSlope": -1,
            "RescaleIntercept": 255,
            "PhotometricInterpretation": "MONOCHROME1",
            "WindowCenter": 128,
            "WindowWidth": 256,
        },
    ],
)
def test_an_empty_window_and_a_falling_slope_leave_a_film(film, header):
    shown, plain = (np.asarray(open_film(dicom(np.asarray(film), 8, **each)), float) for each in (header, {}))
    assert np.abs(shown - plain).max() <= 2 or np.corrcoef(shown.ravel(), plain.ravel())[0, 1] > 0.999


def test_monochrome1_is_turned_and_the_first_of_many_frames_is_taken(film):
    pixels = np.asarray(film)
    turned = open_film(dicom(255 - pixels, 8, PhotometricInterpretation="MONOCHROME1"))
    assert np.abs(np.asarray(turned, int) - np.asarray(open_film(dicom(pixels, 8)), int)).max() <= 1
    frames = np.stack([pixels, pixels[::-1], pixels * 0])
    assert open_film(dicom(frames, 8)).tobytes() == open_film(dicom(pixels, 8)).tobytes()


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "JPEG2000.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "examples_palette.dcm",
        "MR_small_bigendian.dcm",
        "SC_rgb_rle_2frame.dcm",
    ],
)
def test_the_files_that_pydicom_ships_are_read(name):
    image = open_film(Path(get_testdata_file(name)).read_bytes())
    assert image.mode == "L" and image.getextrema()[1] > 128


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty"),
        (b"no image at all", "not_an_image"),
        (Path(get_testdata_file("rtplan.dcm")).read_bytes(), "not_an_image"),
        (Path(get_testdata_file("MR_truncated.dcm")).read_bytes(), "damaged"),
        (bytes(128) + b"DICM" + b"\xff" * 64, "not_an_image"),
        (Path(get_testdata_file("image_dfl.dcm")).read_bytes(), "unknown_compression"),
    ],
)
def test_what_is_no_image_is_refused(data, reason):
    with pytest.raises(BadImage) as refused:
        open_film(data)
    assert refused.value.reason == reason


def test_nothing_is_said_of_a_header_that_is_wrong(film, capfd, caplog, recwarn):
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        data = dicom(
            np.asarray(film),
            8,
            SpecificCharacterSet="Doe^Jane",
            StudyDate="Doe",
            PatientBirthDate="Jane",
            SeriesInstanceUID="Doe.1",
        )
    finally:
        pydicom.config.settings.writing_validation_mode = pydicom.config.RAISE
    recwarn.clear(), caplog.clear(), capfd.readouterr()  # what writing such a file said
    assert open_film(data).size == film.size
    with pytest.raises(BadImage):
        open_film(data[:-1000])
    said = "".join(capfd.readouterr()) + caplog.text + "".join(str(each.message) for each in recwarn)
    assert "Doe" not in said and "Jane" not in said


def test_grey_in_three_channels_is_no_colour(film):
    assert not is_colour(png(film)) and not is_colour(png(film.convert("RGB")))
    assert is_colour(png(Image.fromarray(load_sample_image("flower.jpg"))))


@pytest.fixture
def folder(finished, tmp_path, film, monkeypatch) -> Path:
    """A folder of images beside a trained adapter, which is in the current folder."""
    monkeypatch.chdir(finished)
    (tmp_path / "films/more").mkdir(parents=True)
    (tmp_path / "films/a.png").write_bytes(png(film))
    (tmp_path / "films/more/IM00001").write_bytes(dicom(np.asarray(film), 8))
    (tmp_path / "films/c.jpg").write_bytes(b"torn")
    (tmp_path / "films/d.png").write_bytes(png(Image.fromarray(load_sample_image("china.jpg"))))
    (tmp_path / "films/e.png").write_bytes(png(Image.new("L", (300, 200), 7)))
    (tmp_path / "films/f.png").write_bytes(png(Image.fromarray(load_sample_image("china.jpg")).convert("L")))
    (tmp_path / "films/notes.txt").write_text("not looked at")
    return tmp_path / "films"


def explain(monkeypatch, capsys, *arguments) -> str:
    run_stage("explain", *map(str, arguments), "--samples", "4")
    return capsys.readouterr().out


def test_a_folder_is_explained_file_by_file(folder, monkeypatch, capsys):
    """One broken file among good ones is named, the others are explained, and the exit status is 1."""
    with pytest.raises(SystemExit) as ended:
        run_stage("explain", str(folder), "--json", "--samples", "4")
    assert ended.value.code == 1
    explanations = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(each["image"]).name for each in explanations] == [
        "a.png",
        "c.jpg",
        "d.png",
        "e.png",
        "f.png",
        "IM00001",
    ]
    film, broken, colour, blank, photograph, dicom_film = explanations
    assert film["report"]
    assert set(film["probabilities"]) == set(FINDINGS)
    for share in (*film["probabilities"].values(), film["agreement"]):
        assert share * 4 == int(share * 4)
    assert film["warning"] == dicom_film["warning"] == ""
    assert "not an image" in broken["problem"] and not broken["report"]
    assert "colour" in colour["warning"]
    assert "blank" in blank["warning"]
    assert "unlike those that the adapter was tuned on (drawn phantoms)" in photograph["warning"]
    assert film["measured"] is not None and film["calibration"].startswith("measured on")
    for warned in (colour, blank, photograph):  # of such images nothing was measured
        assert (warned["measured"], warned["calibration"]) == (None, NOT_FOR_THIS_IMAGE)


def test_a_table_and_a_text_say_the_same_and_nothing_of_the_patient(folder, monkeypatch, capsys):
    table = pd.read_csv(
        io.StringIO(explain(monkeypatch, capsys, folder / "a.png", folder / "more/IM00001", "--csv"))
    )
    assert list(table.columns[:3]) == ["image", "report", "findings"]
    assert set(FINDINGS) < set(table.columns)
    text = explain(monkeypatch, capsys, folder / "a.png", folder / "more/IM00001", folder / "f.png")
    assert (
        table["report"][0] in text
        and "not a medical device" in text
        and "WARNING: the image is unlike" in text
    )
    everything = text + table.to_csv()
    assert not any(secret in everything for secret in ("Doe", "Jane", "4711", "1999"))


def test_as_many_reports_are_sampled_as_were_asked_for(folder, film, monkeypatch):
    """Also where the report is their consensus, of which evaluation would draw more."""
    asked = load_explainer("models/adapter", samples=1)
    assert asked.generation.decoding == "consensus" and asked.generation.samples > 1
    drawn = []

    def count(*arguments):
        drawn.append(arguments[4])
        return sample_reports(*arguments)

    monkeypatch.setattr(explainer, "sample_reports", count)
    (explanation,) = asked.explain([("a.png", png(film))])
    assert drawn == [1]
    assert explanation.agreement == 1  # one report agrees with itself


def test_the_same_image_gets_the_same_explanation_alone_and_among_others(folder, monkeypatch, capsys):
    alone = explain(monkeypatch, capsys, folder / "a.png", "--json")
    among = explain(monkeypatch, capsys, folder / "f.png", folder / "a.png", "--json").splitlines()[1]
    assert json.loads(alone) == json.loads(among)


def test_an_adapter_is_never_asked_with_another_prompt(finished, tmp_path, monkeypatch):
    (tmp_path / "models").symlink_to(finished / "models")
    write_params(tmp_path, SMALL, {"model": {"prompt": "caption en"}})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="tuned with the prompt 'describe en', and is asked 'caption en'"):
        load_explainer("models/adapter", samples=0)


@pytest.mark.parametrize("content", ["{", "[]", '{"prompt": "describe en"}', '{"prompt": "a", "sources": 3}'])
def test_a_damaged_note_of_what_an_adapter_was_tuned_on_is_one_line(tmp_path, content):
    (tmp_path / "tuned_on.json").write_text(content)
    with pytest.raises(UserError, match="tuned_on.json is damaged"):
        load_tuned_on(tmp_path)


@pytest.mark.parametrize(
    "report, remark",
    [
        ("yes", "no report"),
        ("", "no report"),
        ("a man riding a horse", "no report"),
        (
            "Findings: A mass is seen. Impression: Lung nodule.",
            "mass in its findings, nodule in its impression",
        ),
        ("Findings: No pulmonary edema. Impression: Pulmonary edema.", "differ on edema"),
        ("Findings: There is a pneumothorax. Impression: No pneumothorax.", "differ on pneumothorax"),
        (
            "Findings: There is a pleural effusion. No evidence of pleural effusion. Impression: Effusion.",
            "effusion asserted and denied in its findings",
        ),
        ("Findings: There is an effusion. No effusion.", "effusion asserted and denied in its findings"),
    ],
)
def test_a_text_that_is_no_report_and_one_that_contradicts_itself_are_remarked(report, remark):
    (found,) = remarks_on(report)
    assert remark in found


def test_a_report_is_not_remarked(small_data):
    """Nor one whose impression leaves a finding out or adds one, or that denies on one side what it
    asserts on the other; nor any of the templates' own.
    """
    assert remarks_on("Findings: There is a left effusion. No right effusion. Impression: Effusion.") == ()
    assert remarks_on("Findings: Mild atelectasis. The lungs are otherwise clear.") == ()
    assert remarks_on("The heart is enlarged.") == ()
    assert remarks_on("Findings: A mass and an effusion are seen. Impression: Mass.") == ()
    assert remarks_on("Findings: The heart is enlarged. Impression: Cardiomegaly and edema.") == ()
    reports = pd.read_csv(small_data / "data/reports.csv")["report"]
    assert len(reports) >= 100
    assert [report for report in reports if remarks_on(report)] == []


@pytest.mark.parametrize(
    "arguments, status, says",
    [
        (["--help"], 0, "usage"),
        (["film.png", "--simples", "3"], 2, "unrecognized arguments"),
        (["film.png", "--samples", "-3"], 2, "samples"),
        (["nowhere.png"], 1, "there is no nowhere.png"),
        (
            [str(ROOT / "README.md")],
            1,
            "README.md\n  not an image that can be used: no PNG, JPEG or DICOM",
        ),
    ],
)
def test_arguments_are_answered_before_anything_heavy_is_imported(arguments, status, says):
    script = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('heavy:', sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, str(ROOT / "stages/explain.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "stages")})
    assert done.returncode == status
    assert says in done.stdout + done.stderr
    assert "heavy: []" in done.stdout


def test_files_of_a_folder_and_none_at_all(folder):
    assert [path.name for path in find_images([folder])] == [
        "a.png",
        "c.jpg",
        "d.png",
        "e.png",
        "f.png",
        "IM00001",
    ]
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="no image"):
        find_images([folder / "empty"])


# --- what a share is worth ---


def test_the_shares_come_with_what_they_were_worth_for_this_adapter_alone(folder, capsys):
    """`finished` has evaluated the adapter that is loaded; the figures of another say nothing of it."""
    (explanation,) = load_explainer("models/adapter", None).explain(
        [("a.png", (folder / "a.png").read_bytes())]
    )
    scored = json.loads(Path("metrics/eval.json").read_text())["calibration"]
    assert explanation.calibration.startswith(
        f"measured on {scored['n']} test images (drawn phantoms) with 2 sampled"
    )
    for finding, like in explanation.measured.items():
        assert explanation.probabilities[finding] >= SHOWN_SHARE
        assert {"findings": like.findings, "present": like.present}.items() <= scored["bins"][
            bin_name(explanation.probabilities[finding])
        ].items()
    assert load_calibration("another", Path("metrics/eval.json")) is None
    assert load_calibration(scored["adapter"], folder / "no.json") is None


def bin_name(share: float) -> str:
    above = 10 * (math.ceil(10 * share) - 1)
    return f"{above}_to_{above + 10}"


def test_what_was_measured_stands_beside_each_share_and_what_was_not_is_said(capsys):
    explain = run_path(str(ROOT / "stages/explain.py"))
    shown = Explanation(
        "a.png",
        "A mass is seen.",
        ("Mass",),
        {"Mass": 0.81, "Nodule": 0.25, "Edema": 0.04},
        measured={"Mass": LikeFindings(39, 0.974)},
        calibration="measured on 128 test images",
        agreement=0.5,
    )
    text = explain["as_text"](shown)
    assert "in sampled reports: Mass 81% (97% of 39), Nodule 25%\n" in text
    assert "measured on 128 test images" in text and "Edema" not in text
    text = explain["as_text"](dataclasses.replace(shown, measured=None, calibration=NOT_MEASURED))
    assert "Mass 81%, Nodule 25%\n" in text and NOT_MEASURED in text
    row = explain["as_csv"]([shown]).splitlines()
    assert "measured" not in row[0] and len(row) == 2


def test_a_bin_holds_its_upper_limit_and_nothing_is_said_of_what_is_not_shown():
    like = LikeFindings(3, 0.5)
    known = Calibration(10, 16, 0.1, {(0, 10): like})
    assert known.like(0.1) is like and known.like(0.0625) is like
    assert known.like(0.04) is None and known.like(0.11) is None
