"""Conversions between the units that sources use and those used inside (Bq/mL, mm, s, MBq, kg)."""

ML_PER_MM3 = 1e-3


def suv_to_bqml(injected_mbq: float, weight_kg: float) -> float:
    """Bq/mL that one SUV stands for.

    SUV by body weight = activity concentration [Bq/mL] x weight [g] / injected activity [Bq], with both activities at
    the same time (doi 10.2967/jnumed.109.064527). Tissue of 1 g/mL is assumed, as in every clinical SUV.

    Parameters
    ----------
    injected_mbq : float
        Injected activity in MBq, decayed to the time to which the image is corrected (scan start).
    weight_kg : float
        Body weight in kg.

    Returns
    -------
    float
        Bq/mL for SUV 1.
    """
    if injected_mbq <= 0 or weight_kg <= 0:
        raise ValueError(f"SUV needs a positive activity and weight, got {injected_mbq} MBq and {weight_kg} kg")
    return injected_mbq * 1e6 / (weight_kg * 1e3)


def lean_body_mass_kg(weight_kg: float, height_m: float, sex: str) -> float:
    """Lean body mass by Janmahasatian et al. 2005 (doi 10.2165/00003088-200544100-00004).

    9270 weight / (6680 + 216 BMI) for men, 9270 weight / (8780 + 244 BMI) for women, in kg. It grows with weight at any
    stature, unlike the formula of James (`james_lean_body_mass_kg`). Coefficients were read in a text that quotes the paper.

    Parameters
    ----------
    weight_kg, height_m : float
    sex : str
        "M" or "F".
    """
    _check_body(weight_kg, height_m, sex)
    bmi = weight_kg / height_m**2
    return 9270.0 * weight_kg / (6680.0 + 216.0 * bmi if sex == "M" else 8780.0 + 244.0 * bmi)


def james_lean_body_mass_kg(weight_kg: float, height_m: float, sex: str) -> float:
    """Lean body mass by James: 1.10 W - 128 (W / H)^2 for men, 1.07 W - 148 (W / H)^2 for women, in kg and cm.

    For images that say they were made with it. It has its highest value at a BMI of 43 (men) or 36 (women) and falls beyond,
    to zero in the end: such bodies are refused.

    Raises
    ------
    ValueError
        A BMI beyond the highest value.
    """
    _check_body(weight_kg, height_m, sex)
    a, b = (1.10, 128.0) if sex == "M" else (1.07, 148.0)
    per_cm = weight_kg / (100.0 * height_m)
    # d/dW of a W - b (W / H)^2 vanishes where 2 b W / H^2 = a.
    if 2 * b * per_cm / (100.0 * height_m) > a:
        raise ValueError(f"the lean body mass of James falls with weight at a BMI of {weight_kg / height_m**2:.0f} kg/m2")
    return a * weight_kg - b * per_cm**2


def body_surface_m2(weight_kg: float, height_m: float) -> float:
    """Body surface area by Du Bois and Du Bois 1916: 0.007184 (kg)^0.425 (cm)^0.725, in m2."""
    _check_body(weight_kg, height_m, "M")
    return 0.007184 * weight_kg**0.425 * (100.0 * height_m) ** 0.725


def _check_body(weight_kg: float, height_m: float, sex: str) -> None:
    if not (weight_kg > 0 and 0.3 <= height_m <= 2.6 and sex in ("M", "F")):
        raise ValueError(f"no body of {weight_kg:g} kg, {height_m:g} m, sex '{sex}': weight in kg, height in m, M or F")
