"""Rank candidate companies by how well they fit a stated profile."""

from collections.abc import Mapping

from tokenlib.features.feature import DemoFeature, FeatureResult
from tokenlib.features.inputs import Fields, distinct
from tokenlib.features.wording import count

INDUSTRY_POINTS = 50
REGION_POINTS = 20
SIZE_POINTS = 30
MOST_EMPLOYEES = 1_000_000


def run(values: Mapping[str, object]) -> FeatureResult:
    """Score each candidate from 0 to 100: industry 50, region 20, size up to 30.

    A company outside the wanted size gets the part of the 30 points by which it comes near:
    half the smallest size wanted, or twice the largest, is worth 15.
    """
    fields = Fields(values, ("profile", "candidates"))
    profile = fields.group("profile", ("industry", "region", "min_employees", "max_employees"))
    industry, region = profile.text("industry"), profile.text("region")
    smallest = profile.whole("min_employees", 1, MOST_EMPLOYEES)
    largest = profile.whole("max_employees", smallest, MOST_EMPLOYEES)
    candidates = fields.rows("candidates", ("company", "industry", "region", "employees"), 1, 200)

    found: list[tuple[int, str, str]] = []
    for row in candidates:
        company, employees = row.text("company"), row.whole("employees", 1, MOST_EMPLOYEES)
        same_industry = row.text("industry").casefold() == industry.casefold()
        same_region = row.text("region").casefold() == region.casefold()
        size = (
            SIZE_POINTS * employees // smallest
            if employees < smallest
            else SIZE_POINTS * min(employees, largest) // employees
        )
        fit = INDUSTRY_POINTS * same_industry + REGION_POINTS * same_region + size
        reasons = (
            "same industry" if same_industry else "other industry",
            "same region" if same_region else "other region",
            f"{count(employees, 'employee')} for {smallest:,} to {largest:,}",
        )
        found.append((fit, company, ", ".join(reasons)))
    distinct("candidates", [company for _, company, _ in found])

    found.sort(key=lambda lead: (-lead[0], lead[1]))
    best_fit, best, best_reason = found[0]
    strong = sum(fit >= 75 for fit, _, _ in found)
    return FeatureResult(
        title="Leads by fit",
        summary=(
            f"{best} fits best with {best_fit} of 100: {best_reason}. "
            f"At 75 or more: {strong} of {count(len(found), 'candidate')}."
        ),
        rows=tuple(
            {"rank": rank, "company": company, "fit": fit, "why": reason}
            for rank, (fit, company, reason) in enumerate(found, start=1)
        ),
    )


FEATURE = DemoFeature(
    name="generate_leads",
    title="Generate leads",
    description="Ranks candidate companies by their fit to the customers you want.",
    example={
        "profile": {
            "industry": "Property management",
            "region": "North",
            "min_employees": 20,
            "max_employees": 100,
        },
        "candidates": [
            {
                "company": "Sample Homes",
                "industry": "Property management",
                "region": "North",
                "employees": 45,
            },
            {
                "company": "Sample Offices",
                "industry": "Property management",
                "region": "South",
                "employees": 160,
            },
            {
                "company": "Sample Hotel",
                "industry": "Hospitality",
                "region": "North",
                "employees": 80,
            },
            {
                "company": "Sample Clinic",
                "industry": "Health care",
                "region": "East",
                "employees": 12,
            },
            {
                "company": "Sample Flats",
                "industry": "Property management",
                "region": "North",
                "employees": 8,
            },
        ],
    },
    run=run,
)
