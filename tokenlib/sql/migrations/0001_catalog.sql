-- The default catalog.
insert into public.ai_token_types (token_type, title, position) values
    ('lead_generation', 'Lead generation', 1),
    ('goal_generation', 'Goal generation', 2),
    ('strategy_analysis', 'Strategy analysis', 3),
    ('forecast', 'Forecast', 4),
    ('general', 'General', 5),
    ('shared', 'Purchased packs', 6);

insert into public.ai_token_plans (plan, title, position, monthly_price_cents) values
    ('starter', 'Starter', 1, 0),
    ('pro', 'Pro', 2, 14900),
    ('enterprise', 'Enterprise', 3, 39900);

insert into public.ai_token_allowances (plan, token_type, allowance) values
    ('starter', 'lead_generation', 0), ('pro', 'lead_generation', 50),
    ('enterprise', 'lead_generation', 500),
    ('starter', 'goal_generation', 0), ('pro', 'goal_generation', 20),
    ('enterprise', 'goal_generation', 200),
    ('starter', 'strategy_analysis', 0), ('pro', 'strategy_analysis', 100),
    ('enterprise', 'strategy_analysis', 1000),
    ('starter', 'forecast', 0), ('pro', 'forecast', 30), ('enterprise', 'forecast', 200),
    ('starter', 'general', 0), ('pro', 'general', 50), ('enterprise', 'general', 500);

insert into public.ai_token_features (feature, title, token_type, cost) values
    ('generate_leads', 'Generate leads', 'lead_generation', 5),
    ('generate_goal', 'Generate a quest', 'goal_generation', 3),
    ('analyze_strategy', 'Analyze strategy', 'strategy_analysis', 2),
    ('forecast_revenue', 'Forecast revenue', 'forecast', 4),
    ('generate_insight', 'Generate an insight', 'general', 1),
    ('analyze_efficiency', 'Analyze efficiency', 'general', 2);

insert into public.ai_token_packs (pack, tokens, price_cents) values
    ('pack_500', 500, 2900), ('pack_2000', 2000, 7900);

insert into public.ai_token_parameters default values;
insert into public.ai_token_limits (organization_id) values (null);
