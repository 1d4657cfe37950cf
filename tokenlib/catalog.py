"""Plans, token types, features and costs, read from the database."""

from __future__ import annotations

import logging
from uuid import UUID

from tokenlib.db import Database, as_uuid, statements
from tokenlib.domain import Catalog, Feature, Mode
from tokenlib.errors import UnknownOrganization


class CatalogVerbs:
    """What every verb stands on: the database, the environment's switch, the catalog."""

    log = logging.getLogger("tokenlib")

    def __init__(self, database: Database, override: Mode | None = None) -> None:
        self.database = database
        self.override = override
        self.known_catalog: Catalog | None = None  # as last read

    def catalog(self) -> Catalog:
        """The catalog as it stands now."""
        named = statements("catalog")
        with self.database.transaction() as connection:
            features = connection.exec_driver_sql(named["features"]).mappings().all()
            types = connection.exec_driver_sql(named["token_types"]).scalars().all()
            plans = connection.exec_driver_sql(named["plans"]).scalars().all()
            allowances = connection.exec_driver_sql(named["allowances"]).all()
        self.known_catalog = Catalog(
            features={row["feature"]: Feature(**row) for row in features},
            token_types=tuple(types),
            plans=tuple(plans),
            allowances={(plan, token_type): amount for plan, token_type, amount in allowances},
        )
        return self.known_catalog

    def known_organization(self, organization: UUID | str) -> UUID:
        """The id of an organization that exists; InvalidInput or UnknownOrganization otherwise."""
        organization_id = as_uuid(organization, "organization")
        named = statements("catalog")
        if not self.database.rows(named["organization"], {"organization_id": organization_id}):
            raise UnknownOrganization(organization_id)
        return organization_id
