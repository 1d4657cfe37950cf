"""Every read-only question. The console, the API and the CLI ask here; nobody else writes a SELECT.

One question is one statement. What a viewer sees is decided by row-level security in the database:
staff see everything, members their own organization, strangers nothing.
"""

from tokenlib.reports.asking import Page, Viewer
from tokenlib.reports.explain import ExplainReports
from tokenlib.reports.export import neutralised
from tokenlib.reports.organizations import OrganizationReports
from tokenlib.reports.overview import OverviewReports
from tokenlib.reports.replies import customer_reply
from tokenlib.reports.series import SeriesReports
from tokenlib.reports.settings import SettingsReports
from tokenlib.reports.usage import UsageReports

__all__ = ["Page", "Reports", "Viewer", "customer_reply", "neutralised"]


class Reports(
    UsageReports,
    SeriesReports,
    OverviewReports,
    OrganizationReports,
    ExplainReports,
    SettingsReports,
):
    """All questions on one object, asked as one viewer (None: the service itself)."""
