-- The rollups as a whole: closing, forgetting, comparing them with the log.

-- name: close
select * from tokenlib.close_usage(%(most)s)

-- name: forget
select tokenlib.forget_usage()

-- name: state
select c.closed_to, tokenlib.clock() as now from public.ai_token_usage_closed c
