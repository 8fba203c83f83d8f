-- What wrk sends: one and the same request, but for its key.
--
-- Arguments: what stands before the key, what stands behind it, the number of this run, every how manieth request repeats
-- a key (0 for none), and the keys whose responses are recorded, separated by commas.

local threads = 0

function setup(thread)
   thread:set("thread_number", threads)
   threads = threads + 1
end

-- This far back, a request has had its response: a thread waits for fewer at once.
-- No number that is repeated so is a repetition itself, which are multiples of 20; nor is it 1, which wrk does not send.
local DISTANCE = 1010

-- A key ends in these digits, so that a request is one concatenation of strings that are there.
local BLOCK = 4096
local last_digits = {}
for digits = 0, BLOCK - 1 do
   last_digits[digits] = string.format("%03x", digits)
end

local prefix, tail, every
local recorded, recorded_count = {}, 0
local number = 0
-- Each block's head, up to the last digits of the key.
local heads = {}

function init(args)
   prefix = args[1] .. string.format("%08x-%04x-4000-8000-", tonumber(args[3]), thread_number)
   tail = args[2]
   every = tonumber(args[4])
   for key in args[5]:gmatch("[^,]+") do
      recorded[recorded_count] = args[1] .. key .. tail
      recorded_count = recorded_count + 1
   end
end

local function numbered(number)
   local digits = number % BLOCK
   local block = (number - digits) / BLOCK
   local head = heads[block]
   if not head then
      head = prefix .. string.format("%09x", block)
      heads[block] = head
   end
   return head .. last_digits[digits] .. tail
end

function request()
   number = number + 1
   if every == 0 or number % every ~= 0 then
      return numbered(number)
   end
   if every == 1 or number <= DISTANCE then
      return recorded[number % recorded_count]
   end
   return numbered(number - DISTANCE)
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write("\n", string.format(
      '{"requests":%d,"bytes":%d,"micros":%d,"rejected":%d,"broken":%d,"late":%d,"p50":%d,"p99":%d,"p999":%d}',
      summary.requests, summary.bytes, summary.duration, errors.status,
      errors.connect + errors.read + errors.write, errors.timeout,
      latency:percentile(50), latency:percentile(99), latency:percentile(99.9)
   ), "\n")
end
