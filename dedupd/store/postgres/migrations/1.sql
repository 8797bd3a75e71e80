-- A record under its key: the fields of record.Record, with moments in the place of durations,
-- since every moment here is of the one clock that decides, the database's.
--
-- Partitioned, so that vacuum works on several small tables and not on one large one.
--
-- There is no index on expires_at. It would be written with every new message, and no completion could be a
-- HOT update any more, so that each would be written to the index of keys as well. The sweep walks the pages instead:
-- that reads each row a few times during its life, in order, and writes nothing.
CREATE TABLE records (
    expires_at    timestamptz NOT NULL, -- absent from this moment on, removed or not
    first_seen    timestamptz NOT NULL,
    written_at    timestamptz NOT NULL, -- expires_at and lease_ends_at were counted from here
    lease_ends_at timestamptz,          -- state 2 only
    fence         bigint,               -- not in state 1
    owner         uuid        NOT NULL,
    digest        uuid,
    state         smallint    NOT NULL, -- 1 marked, 2 claimed, 3 completed, 4 released
    key           bytea       NOT NULL PRIMARY KEY
) PARTITION BY HASH (key);

-- A completed claim is a new version of its row. The room that is left on each page keeps it on the same page, where
-- later writes clear the old version away without a vacuum.
DO $$
BEGIN
    FOR i IN 0..7 LOOP
        EXECUTE format('CREATE TABLE records_%1$s PARTITION OF records FOR VALUES WITH (MODULUS 8, REMAINDER %1$s)
            WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.05)', i);
    END LOOP;
END $$;

-- How far the walk over the pages has come. Whoever locks the row walks on.
CREATE TABLE sweep (
    only_one    boolean     PRIMARY KEY DEFAULT true CHECK (only_one),
    partition   integer     NOT NULL DEFAULT 0,
    page        bigint      NOT NULL DEFAULT 0,
    rests_until timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO sweep DEFAULT VALUES;

-- Since when the history is complete. The heartbeat is raised by every look at the store's health, so that
-- a restore, or a failover that lost something, is noticed: it has an older one.
CREATE TABLE birth (
    only_one  boolean     PRIMARY KEY DEFAULT true CHECK (only_one),
    born_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    heartbeat bigint      NOT NULL DEFAULT 0
);
INSERT INTO birth DEFAULT VALUES;

CREATE FUNCTION reborn() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE birth SET born_at = clock_timestamp();
    RETURN NULL;
END $$;

DO $$
DECLARE
    name regclass;
BEGIN
    FOR name IN SELECT relid FROM pg_partition_tree('records') LOOP
        EXECUTE format('CREATE TRIGGER reborn AFTER TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION reborn()', name);
    END LOOP;
END $$;

-- pulse raises the heartbeat and answers since when the history is complete. A heartbeat lower than the
-- one that the caller has seen is that of another history, which begins now.
CREATE FUNCTION pulse_1(known bigint, OUT born_at timestamptz, OUT heartbeat bigint)
LANGUAGE sql SET search_path FROM CURRENT AS $$
    UPDATE birth b
       SET born_at = CASE WHEN b.heartbeat < known THEN clock_timestamp() ELSE b.born_at END,
           heartbeat = greatest(b.heartbeat, known) + 1
    RETURNING b.born_at, b.heartbeat
$$;

-- What the functions answer: an operation's place in the arrays from 1 on; its outcome, null where the
-- caller decides by the record; the time of the decision; and the record that stands there, if any.
CREATE TYPE answer AS (
    place         integer,
    outcome       smallint,
    at            timestamptz,
    state         smallint,
    owner         uuid,
    digest        uuid,
    first_seen    timestamptz,
    fence         bigint,
    written_at    timestamptz,
    lease_ends_at timestamptz,
    expires_at    timestamptz
);

-- The functions below are each one transaction, and each takes its locks in the order of the keys, which is the order of
-- its arrays: so two that meet wait for each other in one direction only. Their statements are short, many and
-- always the same: one plan for all, by the index of keys, whatever the statistics say of a table that was just empty.

-- acquire adds the records of Marks and Claims (those with a lease) whose keys are free, each key once. It
-- answers with the time, in place 0, and with what stands under the other keys. It changes nothing that it finds.
CREATE FUNCTION acquire_1(keys bytea[], owners uuid[], digests uuid[], ttls bigint[], leases bigint[])
RETURNS SETOF answer LANGUAGE plpgsql
SET search_path FROM CURRENT SET plan_cache_mode = force_generic_plan SET jit = off
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    began timestamptz := clock_timestamp();
    added bigint;
BEGIN
    INSERT INTO records (key, owner, digest, state, first_seen, expires_at, fence, written_at, lease_ends_at)
    SELECT o.key, o.owner, o.digest,
           CASE WHEN o.lease IS NULL THEN 1 ELSE 2 END,
           date_trunc('milliseconds', began),
           began + o.ttl * interval '1 ms',
           CASE WHEN o.lease IS NOT NULL THEN 1 END,
           began,
           began + o.lease * interval '1 ms'
      FROM unnest(keys, owners, digests, ttls, leases) AS o (key, owner, digest, ttl, lease)
        ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS added = ROW_COUNT;
    RETURN NEXT (0, NULL, began, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::answer;
    IF added < cardinality(keys) THEN
        -- A statement of its own sees what others have added meanwhile. What it sees is not decided by a later
        -- time than that at which it looks: it may be another's by then.
        began := clock_timestamp();
        RETURN QUERY
        SELECT o.place::integer, NULL::smallint, greatest(began, r.written_at),
               r.state, r.owner, r.digest, r.first_seen, r.fence, r.written_at, r.lease_ends_at, r.expires_at
          FROM unnest(keys) WITH ORDINALITY AS o (key, place) LEFT JOIN records r ON r.key = o.key
         WHERE r.key IS NULL OR r.xmin IS DISTINCT FROM pg_current_xact_id_if_assigned()::xid;
    END IF;
END $$;

-- settle carries out the Complete, Release and Renew of holders whose claims stand, each key once: state is the
-- one that the claim shall have, null for a Lookup. Under the other keys it changes nothing and answers what stands there.
CREATE FUNCTION settle_1(keys bytea[], owners uuid[], fences bigint[], states smallint[], ttls bigint[], leases bigint[])
RETURNS SETOF answer LANGUAGE plpgsql
SET search_path FROM CURRENT SET plan_cache_mode = force_generic_plan SET jit = off
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    began timestamptz := clock_timestamp();
    done  bigint;
BEGIN
    RETURN QUERY
    UPDATE records r
       SET state = o.state,
           written_at = began,
           lease_ends_at = began + o.lease * interval '1 ms',
           expires_at = began + o.ttl * interval '1 ms'
      FROM unnest(keys, owners, fences, states, ttls, leases)
           WITH ORDINALITY AS o (key, owner, fence, state, ttl, lease, place)
     WHERE r.key = o.key AND r.owner = o.owner AND r.fence = o.fence AND r.state = 2
       AND r.expires_at > clock_timestamp() AND o.state IS NOT NULL
    RETURNING o.place::integer, 1::smallint, began,
              r.state, r.owner, r.digest, r.first_seen, r.fence, r.written_at, r.lease_ends_at, r.expires_at;
    GET DIAGNOSTICS done = ROW_COUNT;
    IF done < cardinality(keys) THEN
        began := clock_timestamp();
        RETURN QUERY
        SELECT o.place::integer, NULL::smallint, greatest(began, r.written_at),
               r.state, r.owner, r.digest, r.first_seen, r.fence, r.written_at, r.lease_ends_at, r.expires_at
          FROM unnest(keys) WITH ORDINALITY AS o (key, place) LEFT JOIN records r ON r.key = o.key
         WHERE r.key IS NULL OR r.xmin IS DISTINCT FROM pg_current_xact_id_if_assigned()::xid;
    END IF;
END $$;

-- change is store.Transition for any operations in their order, each key as often as may be. The conformance
-- suite holds it to the Go function; where they differ, this is wrong.
CREATE FUNCTION change_1(verbs smallint[], keys bytea[], owners uuid[], fences bigint[], digests uuid[], ttls bigint[], leases bigint[])
RETURNS SETOF answer LANGUAGE plpgsql
SET search_path FROM CURRENT SET plan_cache_mode = force_generic_plan SET jit = off
SET enable_seqscan = off AS $$
DECLARE
    mark CONSTANT smallint := 1; claim CONSTANT smallint := 2; complete CONSTANT smallint := 3;
    release CONSTANT smallint := 4; renew CONSTANT smallint := 5; lookup CONSTANT smallint := 6; forget CONSTANT smallint := 7;
    marked CONSTANT smallint := 1; claimed CONSTANT smallint := 2; completed CONSTANT smallint := 3; released CONSTANT smallint := 4;
    granted CONSTANT smallint := 1; seen CONSTANT smallint := 2; held CONSTANT smallint := 3;
    mismatch CONSTANT smallint := 4; stale CONSTANT smallint := 5; absent CONSTANT smallint := 6;

    r         records;
    now       timestamptz;
    mine      boolean;
    outcome   smallint;
    becomes   smallint; -- the state that is written; null: nothing is
    next      records;  -- its other fields
BEGIN
    FOR i IN 1..cardinality(keys) LOOP
        LOOP
            SELECT * INTO r FROM records WHERE key = keys[i] FOR UPDATE;
            EXIT WHEN FOUND OR verbs[i] NOT IN (mark, claim);
            -- There is nothing to lock: add what has expired already, unless another was faster.
            INSERT INTO records (key, owner, state, first_seen, written_at, expires_at)
            VALUES (keys[i], owners[i], released, '-infinity', '-infinity', '-infinity') ON CONFLICT DO NOTHING;
        END LOOP;
        now := clock_timestamp();
        becomes := NULL;
        next := r;

        IF verbs[i] IN (mark, claim) THEN
            IF r.expires_at <= now THEN
                r.state := released;
                next.fence := 0;
                next.first_seen := date_trunc('milliseconds', now);
            END IF;
            mine := r.owner = owners[i];
            outcome := CASE
                WHEN r.state = completed OR r.state = marked AND NOT mine THEN seen
                WHEN r.state = claimed AND NOT mine AND r.lease_ends_at > now THEN held
                ELSE granted END;
            IF outcome <> granted AND NOT mine AND r.digest <> digests[i] THEN
                outcome := mismatch;
            END IF;
            IF outcome = granted AND NOT (verbs[i] = mark AND r.state = marked) THEN
                becomes := CASE verbs[i] WHEN mark THEN marked ELSE claimed END;
                next.owner := owners[i];
                next.digest := digests[i];
                -- The same attempt that asks again is the same holder.
                IF NOT (mine AND r.state = claimed) THEN
                    next.fence := coalesce(next.fence, 0) + 1;
                END IF;
            END IF;
        ELSIF r.expires_at <= now OR r.key IS NULL THEN
            outcome := absent;
        ELSIF verbs[i] IN (lookup, forget) THEN
            outcome := granted;
        ELSE
            mine := r.owner = owners[i] AND coalesce(r.fence, 0) = fences[i];
            becomes := CASE verbs[i] WHEN complete THEN completed WHEN release THEN released ELSE claimed END;
            outcome := CASE WHEN mine AND r.state IN (claimed, becomes) AND r.state <> marked THEN granted ELSE stale END;
            IF outcome = stale OR r.state <> claimed THEN
                becomes := NULL;
            END IF;
        END IF;

        IF becomes IS NOT NULL THEN
            UPDATE records SET
                state = becomes, owner = next.owner, digest = next.digest, first_seen = next.first_seen,
                fence = CASE WHEN becomes <> marked THEN next.fence END,
                written_at = now,
                lease_ends_at = CASE WHEN becomes = claimed THEN now + leases[i] * interval '1 ms' END,
                expires_at = now + ttls[i] * interval '1 ms'
             WHERE key = keys[i] RETURNING * INTO r;
        ELSIF verbs[i] = forget AND r.key IS NOT NULL THEN
            -- What was locked. (If nothing was, then what may have come since is another's.)
            DELETE FROM records WHERE key = keys[i];
        END IF;
        IF verbs[i] = forget OR outcome = absent THEN
            r := NULL;
        END IF;
        RETURN NEXT (i, outcome, now,
            r.state, r.owner, r.digest, r.first_seen, r.fence, r.written_at, r.lease_ends_at, r.expires_at)::answer;
    END LOOP;
END $$;

-- sweep removes what has expired from the next pages of the walk, unless another does so at this moment or the
-- walk rests. It never waits for an operation's lock: what is locked is being renewed, or is left for the next walk.
CREATE FUNCTION sweep_1(pages bigint, rest interval, OUT walked boolean, OUT removed bigint)
LANGUAGE plpgsql SET search_path FROM CURRENT SET jit = off AS $$
DECLARE
    s    sweep;
    name text;
BEGIN
    walked := false;
    removed := 0;
    SELECT * INTO s FROM sweep WHERE rests_until <= clock_timestamp() FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    walked := true;
    -- A removal that a crash undoes is made again.
    PERFORM set_config('synchronous_commit', 'off', true);
    name := 'records_' || s.partition;
    EXECUTE format('DELETE FROM %1$I WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM %1$I WHERE ctid >= $1 AND ctid < $2 AND expires_at <= clock_timestamp() FOR UPDATE SKIP LOCKED))', name)
      USING format('(%s,0)', s.page)::tid, format('(%s,0)', s.page + pages)::tid;
    GET DIAGNOSTICS removed = ROW_COUNT;
    s.page := s.page + pages;
    IF s.page * current_setting('block_size')::bigint >= pg_relation_size(name::regclass) THEN
        s.page := 0;
        s.partition := s.partition + 1;
        IF to_regclass('records_' || s.partition) IS NULL THEN
            s.partition := 0;
            s.rests_until := clock_timestamp() + rest;
        END IF;
    END IF;
    UPDATE sweep SET partition = s.partition, page = s.page, rests_until = s.rests_until;
END $$;
