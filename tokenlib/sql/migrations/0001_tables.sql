-- Tables of the books. Names and columns of ai_tokens and ai_token_usage_log are a contract with
-- existing products: columns are added, never renamed or dropped.

-- Host tables: a product that has its own keeps them untouched.
do $$
begin
    if to_regclass('public.organizations') is null then
        create table public.organizations (
            id uuid primary key default gen_random_uuid(),
            name text not null constraint name_not_blank check (btrim(name) <> ''),
            plan text not null default 'starter'
                constraint plan_known check (plan in ('starter', 'pro', 'enterprise')),
            created_at timestamptz not null default now()
        );
        alter table public.organizations enable row level security;
        revoke all on public.organizations from public, anon, authenticated;
    end if;
    if to_regclass('public.user_profiles') is null then
        create table public.user_profiles (
            id uuid primary key default gen_random_uuid(),
            organization_id uuid not null references public.organizations (id),
            full_name text,
            email text,
            -- The tenant's own data: gives no rights here.
            role text not null default 'member',
            created_at timestamptz not null default now()
        );
        create index user_profiles_by_organization on public.user_profiles (organization_id);
        -- Whom an e-mail address means, at every sign-in.
        create index user_profiles_by_email
            on public.user_profiles (lower(email::text collate "C"));
        -- Not forced: the policies' helper function reads it as the owner.
        alter table public.user_profiles enable row level security;
        revoke all on public.user_profiles from public, anon, authenticated;
    end if;
end
$$;

-- The catalog -------------------------------------------------------------------------------------

create table public.ai_token_types (
    token_type text primary key,
    title text not null,
    position integer not null
);

create table public.ai_token_plans (
    plan text primary key,
    title text not null,
    position integer not null,
    monthly_price_cents bigint not null constraint price_not_negative check (monthly_price_cents >= 0)
);

create table public.ai_token_allowances (
    plan text not null references public.ai_token_plans (plan),
    token_type text not null references public.ai_token_types (token_type),
    allowance bigint constraint allowance_not_negative check (allowance >= 0), -- null: unlimited
    primary key (plan, token_type)
);

create table public.ai_token_features (
    feature text primary key,
    title text not null,
    token_type text not null references public.ai_token_types (token_type),
    cost bigint not null constraint cost_positive check (cost > 0),
    -- Output units that one unit of the feature pays; null: a use is one unit, however long its answer.
    unit_size bigint constraint unit_size_positive check (unit_size > 0)
);
-- A key to the token types has its index everywhere, or changing one reads every row.
create index allowances_by_type on public.ai_token_allowances (token_type);
create index features_by_type on public.ai_token_features (token_type);

create table public.ai_token_packs (
    pack text primary key,
    tokens bigint not null constraint pack_positive check (tokens > 0),
    price_cents bigint not null constraint pack_price_not_negative check (price_cents >= 0),
    valid_for interval not null default '12 months'
);

-- One row: what holds for everyone.
create table public.ai_token_parameters (
    only_row boolean primary key default true constraint one_row check (only_row),
    period interval not null default '30 days',
    hold_life interval not null default '10 minutes',
    top_up_block bigint not null default 1000 constraint block_positive check (top_up_block > 0),
    token_cost_cents numeric not null default 1,
    mode text not null default 'enforce'
        constraint mode_known check (mode in ('enforce', 'log_only', 'off')),
    mode_until timestamptz,
    -- Of an organization, over all its users and keys; only the API asks it. Null is off.
    organization_requests_per_minute integer
        constraint organization_requests_positive check (organization_requests_per_minute > 0)
);

-- Abuse limits: one row for everyone (organization_id null) and one per organization that differs.
-- A null limit is off.
create table public.ai_token_limits (
    organization_id uuid unique nulls not distinct,
    requests_per_minute integer default 30,
    seconds_between_requests numeric default 3,
    tokens_per_request bigint default 10,
    output_units_per_request bigint default 2000,
    alert_tokens_per_hour bigint default 500,
    failed_attempts integer default 5,
    -- Whom it is for, never null, as a primary key has to be.
    scope uuid primary key generated always as
        (coalesce(organization_id, '00000000-0000-0000-0000-000000000000')) stored
);

-- Organizations and people as the gate sees them --------------------------------------------------

create table public.ai_token_organization_settings (
    organization_id uuid primary key,
    -- limited: payment failed, AI off; expired: its grace is over; suspended: by an operator.
    status text not null default 'active'
        constraint status_known check (status in ('active', 'limited', 'expired', 'suspended')),
    status_since timestamptz not null default now(),
    mode text constraint organization_mode_known check (mode in ('enforce', 'log_only', 'off')),
    mode_until timestamptz,
    requests_per_minute integer                -- over all its users and keys; null: as for everyone
        constraint own_requests_positive check (requests_per_minute > 0)
);

-- A contract that differs from the plan, for one token type.
create table public.ai_token_organization_allowances (
    organization_id uuid not null,
    token_type text not null references public.ai_token_types (token_type),
    allowance bigint constraint own_allowance_not_negative check (allowance >= 0), -- null: unlimited
    primary key (organization_id, token_type)
);
create index own_allowances_by_type on public.ai_token_organization_allowances (token_type);

create table public.ai_token_user_settings (
    organization_id uuid not null,
    user_id uuid not null,
    paused_at timestamptz,
    primary key (organization_id, user_id)
);

create table public.tokenlib_staff (
    user_id uuid primary key,
    email text not null unique,
    full_name text not null,
    role text not null constraint staff_role_known check (role in ('admin', 'support')),
    grants_per_day bigint not null default 0,
    created_at timestamptz not null default now(),
    -- Staff by a claim: whose, until when, and the newest token or end that was accounted for.
    issuer text,
    until timestamptz,
    signed_at timestamptz,
    constraint staff_claim_whole check (num_nulls(issuer, until, signed_at) in (0, 3))
);

-- Which claims of which issuers make staff: none, unless the owner of the database says so.
create table public.tokenlib_staff_claims (
    issuer text not null,
    claim text[] not null,                     -- the path, such as {groups} or {app_metadata,role}
    value text not null,                       -- the claim itself, or one of its list
    role text not null constraint staff_claim_role check (role in ('admin', 'support')),
    primary key (issuer, claim, value),
    constraint staff_claim_said check (issuer ~ '\S' and value ~ '\S'
        and '' <> all (claim) and array_position(claim, null) is null),
    -- What people write themselves at their provider makes nobody staff.
    constraint staff_claim_of_the_provider check (cardinality(claim) > 0
        and array_to_string(claim, ' ') !~* '(user|unsafe)_?meta_?data'
        and claim[1] <> all ('{sub,email,name,given_name,middle_name,family_name,nickname,'
            'preferred_username,profile,picture,website,phone_number,locale,zoneinfo}'))
);

-- Keys of the HTTP API. Of the secret only an HMAC is kept, by a pepper that the database never sees.
create table public.ai_token_api_keys (
    id uuid primary key,
    organization_id uuid,                      -- null: every organization
    name text not null constraint key_name_length check (length(name) between 1 and 100),
    start text not null,                       -- what the key begins with, to know it by
    digest bytea not null unique,
    old_digest bytea unique,                   -- from before the last rotation, good until old_until
    old_until timestamptz,
    scopes text[] not null constraint scopes_known check (cardinality(scopes) > 0
        and scopes <@ array['check', 'spend', 'read', 'admin', 'metrics']),
    owner_id uuid not null,                    -- the staff person whom its `admin` acts as
    -- Its own limits, null is off; and whether the limits of users hold for what it sends.
    requests_per_minute integer constraint key_requests_positive check (requests_per_minute > 0),
    seconds_between_requests numeric
        constraint key_seconds_positive check (seconds_between_requests > 0),
    tokens_per_request bigint constraint key_tokens_positive check (tokens_per_request > 0),
    output_units_per_request bigint
        constraint key_output_units_positive check (output_units_per_request > 0),
    limit_users boolean not null default false,
    created_at timestamptz not null,
    expires_at timestamptz,
    last_used_at timestamptz,                  -- to the minute
    revoked_at timestamptz
);

-- What the API did under an Idempotency-Key, with its first answer. Kept for a week: what was charged
-- is then still protected by the keys in the books.
create table public.ai_token_api_requests (
    organization_id uuid not null,             -- the zero UUID: for everyone
    caller_id uuid not null,                   -- a person, or an API key
    idempotency_key text not null,
    request_hash bytea not null,
    verb text not null,
    subject_id uuid,
    answer jsonb not null,
    created_at timestamptz not null,
    primary key (organization_id, caller_id, idempotency_key)
);
create index api_requests_by_time on public.ai_token_api_requests (created_at);
create index api_requests_by_caller on public.ai_token_api_requests (caller_id, created_at);
create index api_requests_by_organization on public.ai_token_api_requests
    (organization_id, created_at);

-- The books ---------------------------------------------------------------------------------------

-- Adoption has given the old system's two tables this shape by now, and keeps them.
create table if not exists public.ai_tokens (
    id uuid not null default gen_random_uuid(),
    organization_id uuid not null,
    token_type text not null references public.ai_token_types (token_type),
    balance bigint not null default 0,         -- can be spent now
    total_allocated bigint not null default 0,
    total_used bigint not null default 0,      -- in the current period
    refresh_date timestamptz not null default now() + interval '30 days',
    last_used_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    reserved bigint not null default 0,        -- held by live reservations
    period_start timestamptz,
    plan text,                                 -- the plan that the allowance stands on
    allowance bigint,                          -- per period; null with a plan: unlimited
    pending bigint not null default 0,         -- used, not yet settled into grants
    due_at timestamptz not null default '-infinity', -- when something next happens by itself
    log_number bigint not null default 0,
    log_hash bytea not null default '\x',
    event_number bigint not null default 0,    -- 0: nobody has opened its books yet
    event_hash bytea not null default '\x',
    last_entry_at timestamptz not null default '-infinity',
    primary key (organization_id, id),
    constraint one_wallet_per_type unique (organization_id, token_type),
    constraint balance_not_negative check (balance >= 0),
    constraint reserved_not_negative check (reserved >= 0),
    constraint used_not_negative check (total_used >= 0),
    constraint pending_not_negative check (pending >= 0),
    constraint sums_close check (total_allocated = balance + reserved + total_used)
) with (fillfactor = 80); -- room for the update of a charge on the same page
create index ai_tokens_due on public.ai_tokens (due_at);
create index ai_tokens_by_type on public.ai_tokens (token_type);
create index ai_tokens_by_refresh on public.ai_tokens (refresh_date); -- no charge moves it

create table if not exists public.ai_token_usage_log (
    id uuid not null default gen_random_uuid(),
    organization_id uuid not null,
    user_id uuid,
    token_type text not null,
    feature_used text not null,
    tokens_deducted bigint not null,
    remaining_balance bigint not null,
    metadata jsonb,
    created_at timestamptz not null default now(),
    number bigint,                             -- 1, 2, 3 … per wallet; null: from the old system
    units bigint not null default 1,
    tokens_waived bigint not null default 0,
    reservation_id uuid,
    held bigint not null default 0,            -- what the reservation held …
    returned bigint not null default 0,        -- … and what of it went back to the balance
    idempotency_key text,
    request_hash bytea,
    metadata_digest bytea,
    hash_version smallint,
    hash bytea,
    primary key (organization_id, id),
    constraint deducted_not_negative check (number is null or tokens_deducted >= 0),
    constraint log_number_once unique (organization_id, token_type, number),
    constraint charge_within_hold check (reservation_id is null or tokens_deducted + returned <= held)
);
-- Most charges have no reservation, and many no key.
create unique index one_charge_per_reservation on public.ai_token_usage_log
    (organization_id, reservation_id) where reservation_id is not null;
create unique index one_charge_per_key on public.ai_token_usage_log
    (organization_id, idempotency_key) where idempotency_key is not null;
create index usage_by_time on public.ai_token_usage_log (created_at);
create index usage_by_user on public.ai_token_usage_log (organization_id, user_id, created_at);

create table public.ai_token_events (
    id uuid not null default gen_random_uuid(),
    organization_id uuid not null,
    token_type text not null,
    number bigint not null,                    -- 1, 2, 3 … per wallet
    after_log bigint not null,                 -- the log entry of the wallet that it follows
    kind text not null constraint event_kind_known check (kind in (
        'opening', 'refresh', 'plan_change', 'top_up', 'grant', 'grant_scheduled', 'grant_expired',
        'reserve', 'release', 'hold_expired', 'refund', 'finding_settled', 'metadata_erased',
        'archived')),
    balance_change bigint not null default 0,
    reserved_change bigint not null default 0,
    used_change bigint not null default 0,
    balance_after bigint not null,
    effective_at timestamptz not null,         -- when it took effect; created_at: when written
    created_at timestamptz not null,
    actor text not null,
    reason text,
    subject_id uuid,                           -- the grant, hold, usage, finding or user meant
    idempotency_key text,
    request_hash bytea,
    data jsonb not null default '{}',
    hash_version smallint not null,
    hash bytea not null,
    primary key (organization_id, id),
    constraint event_number_once unique (organization_id, token_type, number)
);
create unique index one_event_per_key on public.ai_token_events
    (organization_id, idempotency_key) where idempotency_key is not null;
create unique index one_refund_per_usage on public.ai_token_events
    (organization_id, subject_id) where kind = 'refund';
create index events_by_time on public.ai_token_events (created_at);
-- What people did, and what was given back: few among many holds. A release of somebody else's hold
-- says whose it was.
create index events_by_people on public.ai_token_events (created_at) where
    kind in ('grant', 'grant_scheduled', 'refund', 'finding_settled')
    or kind = 'release' and data ? 'user_id';
-- Who gave a grant, of many events of a large organization.
create index grants_by_subject on public.ai_token_events (organization_id, subject_id)
    where kind in ('grant', 'grant_scheduled');
-- What a staff person gave today; grants are few.
create index grants_by_actor on public.ai_token_events (actor, created_at)
    where kind in ('grant', 'grant_scheduled');

-- Where the log of each wallet was cut.
create unique index archives_by_wallet on public.ai_token_events (organization_id, token_type, number)
    where kind = 'archived';

-- The keys of archived charges: the rows are gone, and none may be charged again.
create table public.ai_token_archived_keys (
    organization_id uuid not null,
    idempotency_key text not null,
    primary key (organization_id, idempotency_key)
);

create table public.ai_token_grants (
    id uuid not null default gen_random_uuid(),
    organization_id uuid not null,
    token_type text not null,
    kind text not null constraint grant_kind_known check (kind in (
        'allowance', 'purchase', 'gift', 'adjustment', 'refund', 'adopted')),
    source text not null,
    amount bigint not null constraint amount_not_negative check (amount >= 0),
    used bigint not null default 0 constraint grant_used_not_negative check (used >= 0),
    used_before bigint not null default 0,     -- of `used`, what earlier periods used
    remaining bigint not null constraint remaining_within_amount
        check (remaining >= 0 and remaining <= greatest(amount - used, 0)),
    created_at timestamptz not null,
    effective_at timestamptz not null,
    arrived_at timestamptz,                    -- null: scheduled, not yet in the balance
    expires_at timestamptz constraint expires_after_effect check (expires_at > effective_at),
    closed_at timestamptz constraint closed_is_empty check (closed_at is null or remaining = 0),
    primary key (organization_id, id)
);
create index open_grants on public.ai_token_grants (organization_id, token_type)
    where closed_at is null;
create unique index one_open_allowance on public.ai_token_grants (organization_id, token_type)
    where closed_at is null and kind = 'allowance';

create table public.ai_token_reservations (
    id uuid not null default gen_random_uuid(),
    organization_id uuid not null,
    user_id uuid not null,
    token_type text not null,
    feature text not null,
    units bigint not null,
    tokens bigint not null constraint held_not_negative check (tokens >= 0),
    waived bigint not null default 0,          -- the cost, when the switch let it through
    state text not null default 'held'
        constraint state_known check (state in ('held', 'deducted', 'released', 'expired')),
    idempotency_key text,
    request_hash bytea,
    metadata jsonb,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    resolved_at timestamptz,
    drawn jsonb,                               -- [[grant, tokens], …] once the set of grants changed
    limited boolean,                           -- whether limits of users hold for it, too; null: no
    primary key (organization_id, id),
    constraint resolved_when_over check ((state = 'held') = (resolved_at is null))
);
-- Release, expiry and refusal free the key.
create unique index one_reservation_per_key on public.ai_token_reservations
    (organization_id, idempotency_key)
    where idempotency_key is not null and state in ('held', 'deducted');
create index live_reservations on public.ai_token_reservations
    (organization_id, token_type, expires_at) where state = 'held';
create index reservations_by_user on public.ai_token_reservations
    (organization_id, user_id, created_at);
-- Who was hasty in the last minutes, of everybody.
create index reservations_by_time on public.ai_token_reservations (created_at);

-- One row per user, feature, rule and minute. The user is the zero UUID where none is known.
create table public.ai_token_refusals (
    organization_id uuid not null,
    user_id uuid not null,
    feature text not null,
    rule text not null,
    minute timestamptz not null,
    token_type text,
    needed bigint,
    available bigint,
    count bigint not null default 1,
    first_at timestamptz not null,
    last_at timestamptz not null,
    data jsonb not null default '{}',
    primary key (organization_id, user_id, feature, rule, minute)
);
create index refusals_by_time on public.ai_token_refusals (last_at);
-- Every charge with limits asks for these, of which there are few.
create index failed_attempts on public.ai_token_refusals (organization_id, user_id, last_at)
    where rule = 'failed_attempt';

create table public.ai_token_findings (
    id uuid not null default gen_random_uuid(),
    organization_id uuid not null,
    token_type text not null,
    kind text not null,
    detail text not null,
    found jsonb not null default '{}',         -- the figures as they stood before
    found_at timestamptz not null,
    settled_at timestamptz,
    settled_by text,
    settlement text,
    primary key (organization_id, id),
    constraint settled_with_actor_and_reason check (
        (settled_at is null) = (settled_by is null) and (settled_at is null) = (settlement is null))
);

-- What people changed that is no wallet entry: plans, states, switch, catalog, staff. Append-only.
create table public.ai_token_changes (
    id uuid primary key default gen_random_uuid(),
    organization_id uuid,                      -- null: for everyone
    action text not null,
    actor text not null,
    reason text,
    before jsonb,
    after jsonb,
    created_at timestamptz not null
);
create index changes_by_time on public.ai_token_changes (created_at);
create index changes_of_staff on public.ai_token_changes (created_at) where action = 'set_staff';

create table public.ai_token_latencies (
    measured_at timestamptz not null,
    operation text not null,
    milliseconds double precision not null,
    primary key (operation, measured_at)
);

-- Sessions of the console that were signed out before their end, each by a digest of its cookie.
create table public.tokenlib_signed_out (
    session text primary key,
    until timestamptz not null
);

-- One row per verification of everybody's books.
create table public.ai_token_verifications (
    id uuid primary key default gen_random_uuid(),
    at timestamptz not null,
    wallets bigint not null,
    entries bigint not null,
    problems bigint not null
);
create index verifications_by_time on public.ai_token_verifications (at);

-- Rollups: what the log and the refunds add up to, up to the moment that ai_token_usage_closed says;
-- questions about everybody add the raw rows at the edges. Made from the log, so they can be made
-- again from it: see tokenlib.close_usage.

-- One row once usage was closed for the first time. Before `closed_to` no transaction can write any
-- more; so it will be before `next_to` when every transaction below `next_xid` is over.
create table public.ai_token_usage_closed (
    only_row boolean primary key default true constraint one_closing check (only_row),
    closed_to timestamptz,
    windows_to timestamptz,                    -- what ai_token_usage_windows speaks of
    next_to timestamptz,
    next_xid xid8,
    -- Before it no plan of so many organizations differed from the plan of ai_token_usage_seen.
    plans_xid xid8,
    plans_organizations bigint,
    -- What ai_token_usage_hasty holds: hours from … to, by the strictest limits of then.
    hasty_from timestamptz,
    hasty_to timestamptz,
    hasty_limits numeric[]
);

-- Use since the beginning, as it stood at `at`: a window is the difference of two rows. organization_id
-- is a scope: the zero UUID is everybody, in steps of five minutes; the others are in ai_token_usage_kept.
-- No row where a feature was not used in the step before `at`.
create table public.ai_token_usage_sums (
    organization_id uuid not null,
    feature text not null,
    token_type text not null,
    at timestamptz not null,
    uses bigint not null,
    tokens bigint not null,
    waived bigint not null,
    refunded bigint not null,
    primary key (organization_id, feature, token_type, at)
);

-- Who else has sums of their own, and up to when these go: each plan and organizations with many charges
-- in steps of a quarter of an hour, persons with many in steps of an hour and without feature and wallet.
-- The zero UUID as a person is the whole organization, without feature and wallet too.
create table public.ai_token_usage_kept (
    scope uuid primary key,                    -- the organization's id, else a digest
    plan text,
    organization_id uuid,
    user_id uuid,
    closed_to timestamptz not null
);

-- What each organization and each user of one used in the last 1, 7, 30 and 90 days before windows_to.
-- The zero UUID stands for all of the organization, the highest for "no user known".
create table public.ai_token_usage_windows (
    organization_id uuid not null,
    user_id uuid not null,
    days smallint not null,
    uses bigint not null,
    tokens bigint not null,
    primary key (organization_id, user_id, days)
);
-- What each wallet was charged in the last 7 days before windows_to, with what it held then and how
-- long that lasts; null: a year or more, or without a limit.
create table public.ai_token_usage_pace (
    organization_id uuid not null,
    token_type text not null,
    tokens bigint not null,
    balance bigint,
    refresh_date timestamptz,
    run_out_in interval,
    primary key (organization_id, token_type)
);
create index pace_by_run_out on public.ai_token_usage_pace (run_out_in, tokens desc)
    include (balance, refresh_date, organization_id, token_type) where run_out_in is not null;

-- The same of all wallets of an organization together: what lists are sorted and narrowed by.
create table public.ai_token_wallet_sums (
    organization_id uuid primary key,
    balance bigint not null,
    total_used bigint not null,
    refresh_date timestamptz not null,
    last_used_at timestamptz,
    rank smallint,                             -- 1 red, 2 yellow, 3 green, null none
    near_80 boolean not null,                  -- a wallet has used 80 % of its allocation, not all
    near_100 boolean not null,
    least_plan text,                           -- of the plans that its wallets stand on
    most_plan text
) with (fillfactor = 80);

-- What each wallet was charged for each feature since a midnight (UTC) 30 days before that of windows_to,
-- and in its present period of that time; and the lowest cost of a unit at which it would have run out,
-- which it would not where it has no limit.
create table public.ai_token_usage_costs (
    organization_id uuid not null,
    token_type text not null,
    feature text not null,
    uses bigint not null,
    units bigint not null,
    tokens bigint not null,
    period_units bigint not null,
    period_tokens bigint not null,
    lowest bigint,
    runs_out_from bigint,                      -- the same, null without a limit
    primary key (organization_id, token_type, feature)
) with (fillfactor = 80);
create index costs_by_feature on public.ai_token_usage_costs
    (feature, runs_out_from, units desc, organization_id, token_type) include (tokens);

-- The same of all organizations that used a feature, by the lowest cost at which one of their wallets would
-- have run out; 0: at none.
create table public.ai_token_usage_cost_sums (
    feature text not null,
    runs_out_from bigint not null,
    organizations bigint not null,
    units bigint not null,
    tokens bigint not null,
    primary key (feature, runs_out_from)
);

-- Refusals since the beginning, as they stood at `at`, in steps of five minutes with any.
create table public.ai_token_refusal_sums (
    at timestamptz primary key,
    refusals bigint not null
);

-- How often each organization and each person of one hit a limit in the last 1, 7, 30 and 90 days before
-- windows_to, and when last; plan_last_at: by one that another plan would have helped. The zero UUID
-- stands for "no user known", the highest for all of the organization.
create table public.ai_token_refusal_windows (
    days smallint not null,
    organization_id uuid not null,
    user_id uuid not null,
    insufficient_tokens bigint not null,
    feature_not_in_plan bigint not null,
    rate_limited bigint not null,
    last_at timestamptz not null,
    plan_last_at timestamptz,
    primary key (days, organization_id, user_id)
);
-- The first organizations, and the first users; for any reason, and for one that speaks for an upgrade.
create index refused_organizations on public.ai_token_refusal_windows
    (days, (insufficient_tokens + feature_not_in_plan + rate_limited) desc, last_at desc,
        organization_id, user_id)
    where user_id = 'ffffffff-ffff-ffff-ffff-ffffffffffff';
create index refused_users on public.ai_token_refusal_windows
    (days, (insufficient_tokens + feature_not_in_plan + rate_limited) desc, last_at desc,
        organization_id, user_id)
    where user_id <> 'ffffffff-ffff-ffff-ffff-ffffffffffff';
create index upgrade_organizations on public.ai_token_refusal_windows
    (days, (insufficient_tokens + feature_not_in_plan) desc, plan_last_at desc, organization_id, user_id)
    where user_id = 'ffffffff-ffff-ffff-ffff-ffffffffffff';

-- The same by rule, and how many organizations and users it was.
create table public.ai_token_refusal_rules (
    days smallint not null,
    rule text not null,
    refusals bigint not null,
    let_through bigint not null,
    organizations bigint not null,
    users bigint not null,
    primary key (days, rule)
);
-- When each organization or person was refused last by each rule, in the last 90 days before windows_to.
create table public.ai_token_refusal_seen (
    rule text not null,
    person boolean not null,
    id uuid not null,
    last_at timestamptz not null,
    primary key (rule, person, id)
);

-- What each organization was charged on each of its last 17 days (UTC), and when first and last.
create table public.ai_token_usage_days (
    organization_id uuid not null,
    day timestamptz not null,
    tokens bigint not null,
    first_at timestamptz not null,
    last_at timestamptz not null,
    primary key (organization_id, day)
);
-- The first organizations, and the first users.
create index windows_by_organization on public.ai_token_usage_windows
    (days, tokens desc, uses desc, organization_id)
    where user_id = '00000000-0000-0000-0000-000000000000';
create index windows_by_user on public.ai_token_usage_windows
    (days, tokens desc, uses desc, organization_id, user_id)
    where user_id <> '00000000-0000-0000-0000-000000000000';
-- The organizations of a person.
create index windows_by_person on public.ai_token_usage_windows (user_id)
    where days = 90 and user_id <> '00000000-0000-0000-0000-000000000000';

-- How many organizations were active in the `days` before `at`. Rows after closed_to hold the changes
-- that are known already, of what leaves the window then.
create table public.ai_token_usage_active (
    days smallint not null,
    at timestamptz not null,
    change bigint not null,
    active bigint,
    primary key (days, at)
);

-- Hours of the last nine days in which somebody may have gone beyond a limit of requests or tokens: few.
create table public.ai_token_usage_hasty (
    hour timestamptz not null,
    organization_id uuid not null,
    user_id uuid not null,
    primary key (hour, organization_id, user_id)
);

-- What these people did in each block of six hours, with the hour, minute and gap that were the worst of
-- those that end in it; and in the last 24 and 168 hours.
create table public.ai_token_usage_bursts (
    organization_id uuid not null,
    user_id uuid not null,
    hours smallint not null,
    start timestamptz not null,
    requests bigint not null,
    tokens bigint not null,
    peak_hour_tokens bigint not null,
    peak_hour_until timestamptz not null,
    peak_minute_requests bigint not null,
    shortest_gap interval,                     -- between two requests of the block
    largest_request bigint not null,
    first_at timestamptz,                      -- of its requests
    last_at timestamptz,                       -- where the end moves: the last one before it
    primary key (organization_id, user_id, hours, start)
);
create index bursts_of_windows on public.ai_token_usage_bursts (hours) where hours > 6;

-- When each organization was last charged, before closed_to, and the plan that its use is counted to in
-- the sums: what it has now may differ, and the sums follow later.
create table public.ai_token_usage_seen (
    organization_id uuid primary key,
    last_at timestamptz not null,
    plan text not null
);

create table if not exists public.quests (
    id uuid not null default gen_random_uuid(),
    organization_id uuid not null,
    title text not null,
    description text not null default '',
    quarter text not null,
    target_amount bigint not null,
    progress integer not null default 0 constraint progress_percent check (progress between 0 and 100),
    status text not null default 'active',
    metadata jsonb not null default '{}',
    created_by uuid,
    created_at timestamptz not null default now(),
    primary key (organization_id, id)
);

-- Append-only, also for the owner and in replica mode ----------------------------------------------

create function tokenlib.refuse_change() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception '% is append-only: % refused', tg_table_name, lower(tg_op) using
        errcode = 'TK002',
        hint = 'Correct with a new entry: tokenlib grant, refund, or settle a finding.';
end
$$;

-- The log lets two changes pass, each right after the entry that says so. The metadata of a person is
-- erased, and every other bit stays; the digest that the hashes cover is kept, or made for a legacy
-- row. And the owner takes out what was archived.
create function tokenlib.refuse_change_to_log() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_as_before public.ai_token_usage_log := new;
begin
    if tg_op = 'UPDATE' and old.metadata is not null and new.metadata is null
        and new.metadata_digest = coalesce(old.metadata_digest, tokenlib.digest(old.metadata))
    then
        v_as_before.metadata := old.metadata;
        v_as_before.metadata_digest := old.metadata_digest;
        if v_as_before operator(pg_catalog.*=) old and exists (
            select from public.ai_tokens w
            join public.ai_token_events e on e.organization_id = w.organization_id
                and e.token_type = w.token_type and e.number = w.event_number
            where w.organization_id = old.organization_id and w.token_type = old.token_type
                and e.kind = 'metadata_erased' and e.subject_id = old.user_id
                and e.after_log >= coalesce(old.number, 0))
        then
            return new;
        end if;
    elsif tg_op = 'DELETE' and old.number is not null
        and current_user = (select pg_get_userbyid(relowner) from pg_class where oid = tg_relid)
        and exists (
            select from public.ai_tokens w
            join public.ai_token_events e on e.organization_id = w.organization_id
                and e.token_type = w.token_type and e.number = w.event_number
            where w.organization_id = old.organization_id and w.token_type = old.token_type
                and e.kind = 'archived' and (e.data ->> 'through')::bigint >= old.number)
    then
        return old;
    end if;
    raise exception '% is append-only: % refused', tg_table_name, lower(tg_op) using
        errcode = 'TK002',
        hint = 'Correct with a new entry: tokenlib grant, refund, or settle a finding. '
            'To erase a person''s metadata: tokenlib erase. To move old rows out: tokenlib archive.';
end
$$;

create trigger append_only before update or delete on public.ai_token_usage_log
    for each row execute function tokenlib.refuse_change_to_log();
create trigger append_only_table before truncate on public.ai_token_usage_log
    for each statement execute function tokenlib.refuse_change();
create trigger append_only before update or delete on public.ai_token_events
    for each row execute function tokenlib.refuse_change();
create trigger append_only_table before truncate on public.ai_token_events
    for each statement execute function tokenlib.refuse_change();
create trigger append_only before update or delete on public.ai_token_archived_keys
    for each row execute function tokenlib.refuse_change();
create trigger append_only_table before truncate on public.ai_token_archived_keys
    for each statement execute function tokenlib.refuse_change();
create trigger append_only before update or delete on public.ai_token_changes
    for each row execute function tokenlib.refuse_change();
create trigger append_only_table before truncate on public.ai_token_changes
    for each statement execute function tokenlib.refuse_change();
alter table public.ai_token_usage_log enable always trigger append_only;
alter table public.ai_token_usage_log enable always trigger append_only_table;
alter table public.ai_token_events enable always trigger append_only;
alter table public.ai_token_events enable always trigger append_only_table;
alter table public.ai_token_archived_keys enable always trigger append_only;
alter table public.ai_token_archived_keys enable always trigger append_only_table;
alter table public.ai_token_changes enable always trigger append_only;
alter table public.ai_token_changes enable always trigger append_only_table;

-- The old runbook's emergency (UPDATE ai_tokens SET balance = 9999) fails on sums_close; this says
-- what to do instead. The condition costs nothing on a charge.
create function tokenlib.refuse_broken_sums() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception 'the sums of wallet % of organization % would not close: '
        'allocated %, balance %, reserved %, used %', new.token_type, new.organization_id,
        new.total_allocated, new.balance, new.reserved, new.total_used using
        errcode = 'TK001',
        hint = 'Never edit balances. In an emergency use the switch: select tokenlib.set_mode(…), '
            'or TOKENLIB_SWITCH=log_only. To add tokens: tokenlib.grant_tokens(…).';
end
$$;
create trigger sums_close before update on public.ai_tokens
    for each row when (new.total_allocated <> new.balance + new.reserved + new.total_used)
    execute function tokenlib.refuse_broken_sums();
