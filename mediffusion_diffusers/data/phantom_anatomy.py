"""How a chest phantom is drawn: patient parameters, anatomy and findings as smooth functions of the position.

A phantom is a sum of grey values painted in body coordinates `u` (left to right, positive on the right of the picture,
which is the patient's left) and `v` (top to bottom), both about [-1, 1]. Every patient is a pure function of
`(seed, index)`: the same patient can be drawn again, alone or among others, at any size, with or without a finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


PHANTOM_LABELS = ("Cardiomegaly", "Effusion", "Mass", "Infiltration", "Pneumothorax")

# Uniform ranges of the patient parameters, in body coordinates (lengths), radians (angles) or grey values (contrasts).
# Their order is part of the drawing: a new parameter goes to the end.
PARAMETER_RANGES: dict[str, tuple[float, float]] = {
    # position of the patient in the picture
    "rotation": (-0.08, 0.08),
    "zoom": (1.02, 1.22),
    "shift_x": (-0.07, 0.07),
    "shift_y": (-0.07, 0.07),
    # anatomy
    "body_width": (0.84, 0.98),
    "breast": (-0.06, 0.08),
    "lung_width": (0.24, 0.30),
    "lung_height": (0.52, 0.64),
    "lung_x": (0.38, 0.44),
    "lung_y": (-0.12, -0.04),
    "lung_contrast": (0.30, 0.42),
    "diaphragm_right": (0.36, 0.50),
    "diaphragm_left": (0.42, 0.56),
    "mediastinum_width": (0.09, 0.14),
    "heart_x": (0.07, 0.16),
    "heart_y": (0.26, 0.36),
    "heart_width": (0.24, 0.32),
    "heart_height": (0.26, 0.33),
    "heart_angle": (-0.5, -0.1),
    "spine": (0.02, 0.07),
    "vessels": (0.02, 0.05),
    "rib_frequency": (9.5, 12.5),
    "rib_phase": (0.0, 6.28),
    "rib_curvature": (0.5, 0.9),
    "ribs": (0.03, 0.07),
    "clavicle_y": (-0.72, -0.62),
    "clavicles": (0.02, 0.08),
    # findings; a side above 0.5 is the patient's left, drawn on the right
    "cardiomegaly_factor": (1.28, 1.6),
    "effusion_side": (0.0, 1.0),
    "effusion_height": (0.10, 0.32),
    "effusion_meniscus": (0.3, 0.9),
    "effusion_opacity": (0.5, 0.9),
    "mass_side": (0.0, 1.0),
    "mass_radius": (0.07, 0.15),
    "mass_angle": (0.0, 6.28),
    "mass_offset": (0.0, 0.75),
    "mass_contrast": (0.14, 0.30),
    "infiltration_side": (0.0, 1.0),
    "infiltration_radius": (0.16, 0.30),
    "infiltration_angle": (0.0, 6.28),
    "infiltration_offset": (0.1, 0.7),
    "infiltration_contrast": (0.10, 0.22),
    "pneumothorax_side": (0.0, 1.0),
    "pneumothorax_width": (0.10, 0.22),
    "pneumothorax_contrast": (0.05, 0.10),
    "pneumothorax_line": (0.04, 0.10),
    "pneumothorax_bottom": (-0.1, 0.3),
    # distractors that belong to no finding: a wire in a quarter, a dense dot in half of the patients
    "wire_present": (0.0, 1.0),
    "wire_x": (-0.3, 0.3),
    "dot_present": (0.0, 1.0),
    "dot_x": (-0.6, 0.6),
    "dot_y": (-0.6, 0.4),
    "dot_radius": (0.025, 0.045),
    "dot_contrast": (0.1, 0.3),
    # exposure and noise
    "gain": (0.8, 1.2),
    "bias": (-0.08, 0.08),
    "gamma": (0.75, 1.3),
    "noise": (0.03, 0.06),
}
_COLUMN = {name: column for column, name in enumerate(PARAMETER_RANGES)}

# Grids of normal numbers that are enlarged smoothly into textures: name -> cells per side.
TEXTURE_CELLS = {"vessels": 10, "vessels_fine": 18, "tissue": 4, "infiltration": 14}

_EDGE = 22.0  # sharpness of an anatomical border, in 1 / body units
_STREAM_PATIENT, _STREAM_NOISE = 0, 1


@dataclass(frozen=True)
class PhantomPatients:
    """A batch of patients: everything about them but their findings.

    Args:
        seed: seed of the population.
        index: number of each patient in the population, shape `(num,)`.
        parameters: one column per name in `PARAMETER_RANGES`, shape `(num, num_parameters)`.
        textures: normal numbers per name in `TEXTURE_CELLS`, shape `(num, 1, cells, cells)`.
    """

    seed: int
    index: np.ndarray
    parameters: torch.Tensor
    textures: dict[str, torch.Tensor]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, name: str) -> torch.Tensor:
        """One parameter, shaped `(num, 1, 1)` to be combined with pictures."""
        return self.parameters[:, _COLUMN[name], None, None]

    def select(self, rows: Sequence[int] | np.ndarray | slice) -> PhantomPatients:
        """The patients in `rows` (positions in this batch, not population indices)."""
        rows = np.arange(len(self))[rows]
        textures = {name: grid[rows] for name, grid in self.textures.items()}
        return PhantomPatients(self.seed, self.index[rows], self.parameters[rows], textures)


def patient_generator(seed: int, index: int, stream: int) -> np.random.Generator:
    """A counter-based generator that belongs to one patient, so that no patient depends on another."""
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, stream]))


def draw_patient(seed: int, index: int) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Draw one patient.

    Returns:
        parameters `(num_parameters,)`, textures by name `(1, cells, cells)`, and one uniform number per finding,
        to be compared with the prevalence.
    """
    generator = patient_generator(seed, index, _STREAM_PATIENT)
    low, high = np.array(list(PARAMETER_RANGES.values()), dtype=np.float32).T
    parameters = low + (high - low) * generator.random(len(low), dtype=np.float32)
    chances = generator.random(len(PHANTOM_LABELS), dtype=np.float32)
    textures = {
        name: generator.standard_normal((1, cells, cells), dtype=np.float32) for name, cells in TEXTURE_CELLS.items()
    }
    return parameters, textures, chances


def with_findings_of(
    patients: PhantomPatients, donors: PhantomPatients, label: str, first: int = 0
) -> PhantomPatients:
    """Patients who have one finding as others would have it: its side, place, size, contrast and texture.

    Args:
        patients: from `first` on as many as `donors`; all else about them stays.
        donors: whose finding they get.
        label: one of `PHANTOM_LABELS`.
        first: position of the first patient that changes.
    """
    finding = label.lower()
    columns = [column for name, column in _COLUMN.items() if name.startswith(f"{finding}_")]
    parameters, textures = patients.parameters.clone(), dict(patients.textures)
    parameters[first:, columns] = donors.parameters[:, columns]
    if finding in textures:
        textures[finding] = torch.cat([textures[finding][:first], donors.textures[finding]])
    return PhantomPatients(patients.seed, patients.index, parameters, textures)


def draw_noise(patients: PhantomPatients, size: int) -> torch.Tensor:
    """The white noise of each patient at one picture size: shape `(num, size, size)`, standard normal."""
    noise = [
        patient_generator(patients.seed, index, _STREAM_NOISE).standard_normal((size, size), dtype=np.float32)
        for index in patients.index.tolist()
    ]
    return torch.from_numpy(np.stack(noise))


@dataclass
class _Canvas:
    """Body coordinates of every pixel, and the masks that several painters share, all `(num, size, size)`."""

    patients: PhantomPatients
    size: int
    u: torch.Tensor
    v: torch.Tensor

    @property
    def left(self) -> torch.Tensor:
        """Where the patient's left half is (right in the picture)."""
        return self.u > 0

    def on_side(self, finding: str) -> torch.Tensor:
        """1 in the half of the body where the finding sits, else 0."""
        return (self.left == (self.patients[f"{finding}_side"] > 0.5)).float()

    def sign(self, finding: str) -> torch.Tensor:
        """+1 if the finding sits in the patient's left half, else -1; shape `(num, 1, 1)`."""
        return torch.where(self.patients[f"{finding}_side"] > 0.5, 1.0, -1.0)

    def texture(self, name: str) -> torch.Tensor:
        """A smooth random field of about unit variance."""
        size = (self.size, self.size)
        return F.interpolate(self.patients.textures[name], size=size, mode="bicubic", align_corners=False)[:, 0]


def make_canvas(patients: PhantomPatients, size: int) -> _Canvas:
    """Place the patients in the picture: rotation, shift and zoom."""
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    x, y = x - patients["shift_x"], y - patients["shift_y"]
    cosine, sine = torch.cos(patients["rotation"]), torch.sin(patients["rotation"])
    return _Canvas(
        patients,
        size,
        u=(x * cosine + y * sine) / patients["zoom"],
        v=(-x * sine + y * cosine) / patients["zoom"],
    )


def _step(distance: torch.Tensor, sharpness: float = _EDGE) -> torch.Tensor:
    """A soft step: 1 where `distance` is positive, 0 where it is negative."""
    return torch.sigmoid(distance * sharpness)


def body_mask(canvas: _Canvas) -> torch.Tensor:
    """Trunk and shoulders."""
    u, v = canvas.u.abs(), canvas.v
    width = canvas.patients["body_width"] * (0.80 + 0.20 * _step(v + 0.55, 6))
    return _step(width - u) * _step(v + 0.93 - 0.25 * torch.relu(u - 0.35))


def lung_mask(canvas: _Canvas, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One lung (`side` -1: the patient's right, +1: left) and the height of its diaphragm at every `u`."""
    patients, u, v = canvas.patients, canvas.u, canvas.v
    x = (u - side * patients["lung_x"]) / patients["lung_width"]
    y = (v - patients["lung_y"]) / patients["lung_height"]
    taper = 1 - 0.35 * _step(-(v + 0.35), 5)
    radius = (x / taper).abs() ** 2.4 + y.abs() ** 2.6
    diaphragm = patients["diaphragm_right" if side < 0 else "diaphragm_left"] + 0.55 * (x / 2) ** 2
    return _step(1 - radius, 7) * _step(diaphragm - v), diaphragm


def heart_mask(canvas: _Canvas, cardiomegaly: torch.Tensor) -> torch.Tensor:
    """The heart, an oblique ellipse; `cardiomegaly` (1 or 0, `(num, 1, 1)`) widens it, mostly sideways."""
    patients = canvas.patients
    excess = cardiomegaly * (patients["cardiomegaly_factor"] - 1)
    x = canvas.u - patients["heart_x"] * (1 + 0.25 * excess)
    y = canvas.v - patients["heart_y"]
    cosine, sine = torch.cos(patients["heart_angle"]), torch.sin(patients["heart_angle"])
    across = (x * cosine - y * sine) / (patients["heart_width"] * (1 + excess))
    along = (x * sine + y * cosine) / (patients["heart_height"] * (1 + 0.35 * excess))
    return _step(1 - across**2 - along**2, 6)


def mediastinum_mask(canvas: _Canvas) -> torch.Tensor:
    """The band between the lungs, a little wider below."""
    width = canvas.patients["mediastinum_width"] + 0.05 * _step(canvas.v - 0.1, 6)
    return _step(width - (canvas.u - 0.02).abs())


def paint_soft_tissue(canvas: _Canvas, body: torch.Tensor) -> torch.Tensor:
    """Background, trunk and breast shadows."""
    u, v = canvas.u.abs(), canvas.v
    breast = torch.exp(-(((u - 0.45) / 0.28) ** 2) - ((v - 0.35) / 0.25) ** 2)
    return 0.04 + 0.52 * body + canvas.patients["breast"] * breast * body


def paint_bones(canvas: _Canvas, body: torch.Tensor) -> torch.Tensor:
    """Ribs and clavicles."""
    patients, u, v = canvas.patients, canvas.u.abs(), canvas.v
    wave = v - patients["rib_curvature"] * 0.5 * torch.relu(u - 0.1) ** 1.5
    ribs = torch.relu(torch.cos(patients["rib_frequency"] * wave + patients["rib_phase"]))
    cage = _step(0.80 - u) * _step(0.55 - v, 10) * _step(v + 0.8, 10) * body
    clavicles = torch.exp(-(((v - patients["clavicle_y"] - 0.18 * (u - 0.3)) / 0.045) ** 2))
    clavicles = clavicles * _step(0.8 - u) * _step(u - 0.08)
    return patients["ribs"] * ribs * cage + patients["clavicles"] * clavicles


def paint_vessels(canvas: _Canvas, air: torch.Tensor, collapsed: torch.Tensor) -> torch.Tensor:
    """Lung markings, denser at the hilum and missing where the lung has collapsed, and the hilum itself."""
    hilum = torch.exp(-(((canvas.u.abs() - 0.2) / 0.22) ** 2) - ((canvas.v - 0.02) / 0.28) ** 2)
    markings = 0.7 * canvas.texture("vessels") + canvas.texture("vessels_fine").abs()
    markings = markings * (0.5 + 1.3 * hilum) * air * (1 - 0.9 * collapsed / air.clamp_min(1e-3))
    return canvas.patients["vessels"] * markings + 0.07 * hilum * air


def paint_distractors(canvas: _Canvas) -> torch.Tensor:
    """A wire and a small dense dot (a calcification, an electrode) that mean nothing."""
    patients, u, v = canvas.patients, canvas.u, canvas.v
    course = patients["wire_x"] + 0.15 * torch.sin(3 * v + patients["rib_phase"])
    wire = torch.exp(-(((u - course) / 0.02) ** 2)) * _step(0.2 - v, 10)
    distance = torch.sqrt((u - patients["dot_x"]) ** 2 + (v - patients["dot_y"]) ** 2 + 1e-9)
    dot = patients["dot_contrast"] * _step(patients["dot_radius"] - distance, 45)
    return 0.18 * (patients["wire_present"] > 0.75) * wire + (patients["dot_present"] > 0.5) * dot


def pneumothorax_masks(
    canvas: _Canvas, air: torch.Tensor, lateral: torch.Tensor, present: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Free air along the outer and upper rim of one lung, and the fine pleural line that bounds it."""
    patients, v = canvas.patients, canvas.v
    width, lung_width = patients["pneumothorax_width"], patients["lung_width"]
    depth = (lateral - (1 - width / lung_width * 1.6)) * lung_width + 0.25 * torch.relu(-(v + 0.35))
    where = canvas.on_side("pneumothorax") * _step(patients["pneumothorax_bottom"] - v, 12) * air * present
    return _step(depth) * where, torch.exp(-((depth / 0.03) ** 2)) * where


def paint_effusion(
    canvas: _Canvas, air: torch.Tensor, lateral: torch.Tensor, diaphragm: torch.Tensor, present: torch.Tensor
) -> torch.Tensor:
    """Fluid above one diaphragm, climbing at the chest wall (the meniscus)."""
    patients = canvas.patients
    level = diaphragm - patients["effusion_height"] - 0.22 * patients["effusion_meniscus"] * torch.relu(lateral) ** 2
    fluid = _step(canvas.v - level, 16) * canvas.on_side("effusion") * air * present
    return patients["effusion_opacity"] * patients["lung_contrast"] * fluid


def _distance_in_lung(canvas: _Canvas, finding: str, reach_x: float, reach_y: float) -> torch.Tensor:
    """Squared distance from the centre of a finding that lies somewhere in one lung."""
    patients = canvas.patients
    angle, offset = patients[f"{finding}_angle"], patients[f"{finding}_offset"]
    centre_x = canvas.sign(finding) * patients["lung_x"] + reach_x * offset * patients["lung_width"] * torch.cos(angle)
    centre_y = patients["lung_y"] + reach_y * offset * patients["lung_height"] * torch.sin(angle)
    return (canvas.u - centre_x) ** 2 + (canvas.v - centre_y) ** 2


def paint_mass(canvas: _Canvas, air: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """A round, fairly sharp opacity."""
    patients = canvas.patients
    distance = torch.sqrt(_distance_in_lung(canvas, "mass", 0.8, 0.75) + 1e-9)
    disc = _step(patients["mass_radius"] - distance, 30) * (0.25 + 0.75 * air)
    return patients["mass_contrast"] * disc * present


def paint_infiltration(canvas: _Canvas, air: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """A patchy, ill-defined opacity."""
    patients = canvas.patients
    squared = _distance_in_lung(canvas, "infiltration", 0.7, 0.7)
    patch = torch.exp(-((squared / patients["infiltration_radius"] ** 2) ** 1.5))
    patch = patch * _step(canvas.texture("infiltration") + 0.16, 2.5) * 1.5 * air
    return patients["infiltration_contrast"] * patch * present


def paint(patients: PhantomPatients, labels: torch.Tensor, size: int) -> torch.Tensor:
    """Draw patients with the findings in `labels`.

    Args:
        patients: `num` patients.
        labels: 1 (finding present) or 0, shape `(num, 5)`, in the order of `PHANTOM_LABELS`.
        size: side of the picture in pixels.

    Returns:
        Grey values, shape `(num, size, size)`; noise may carry them a little beyond [0, 1].
    """
    canvas = make_canvas(patients, size)
    present = dict(zip(PHANTOM_LABELS, labels.to(torch.float32)[:, :, None, None].unbind(1), strict=True))

    # 1. Anatomy; the enlarged heart is a change of the anatomy itself.
    body, mediastinum = body_mask(canvas), mediastinum_mask(canvas)
    heart = heart_mask(canvas, present["Cardiomegaly"])
    (right_lung, right_diaphragm), (left_lung, left_diaphragm) = lung_mask(canvas, -1), lung_mask(canvas, +1)
    air = ((right_lung + left_lung) * (1 - 0.92 * heart) * (1 - 0.95 * mediastinum)).clamp(0, 1)
    image = paint_soft_tissue(canvas, body) - patients["lung_contrast"] * air
    spine = patients["spine"] * torch.exp(-((canvas.u / 0.06) ** 2))
    image = image + (0.10 * heart + 0.06 * mediastinum + spine) * body

    # 2. Findings in the lungs, and the markings and bones over them. `lateral`: -1 medial to +1 at the chest wall.
    outward = torch.where(canvas.left, 1.0, -1.0)
    lateral = (outward * canvas.u - patients["lung_x"]) / patients["lung_width"]
    diaphragm = torch.where(canvas.left, left_diaphragm, right_diaphragm)
    collapsed, pleural_line = pneumothorax_masks(canvas, air, lateral, present["Pneumothorax"])
    image = image + paint_vessels(canvas, air, collapsed) + paint_bones(canvas, body)
    image = image - patients["pneumothorax_contrast"] * collapsed + patients["pneumothorax_line"] * pleural_line
    image = image + paint_effusion(canvas, air, lateral, diaphragm, present["Effusion"])
    image = image + paint_mass(canvas, air, present["Mass"])
    image = image + paint_infiltration(canvas, air, present["Infiltration"])

    # 3. What means nothing, then exposure and noise.
    image = image + paint_distractors(canvas) + 0.03 * canvas.texture("tissue") * body
    image = (image * patients["gain"] + patients["bias"]).clamp(1e-3, 1) ** patients["gamma"]
    return image + 0.8 * patients["noise"] * draw_noise(patients, size)
